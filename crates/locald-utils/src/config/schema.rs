//! The JSON Schema of a project file, for editors that complete and check while one types.
//!
//! It is made of the types in `written`. It says what can be said about one key at a time; names, cycles, files and
//! ports are checked by [`super::load`] alone.

use schemars::generate::SchemaSettings;
use schemars::{Schema, transform::transform_subschemas};

use super::written::File;

/// Makes the JSON Schema of a project file.
#[must_use]
pub fn schema() -> serde_json::Value {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.with_transform(without_null).into_generator().into_root_schema_for::<File>();
    schema.insert("title".to_owned(), super::FILE_NAME.into());
    schema.to_value()
}

/// Takes `null` out of every type: an optional key is left out, for TOML has no null.
fn without_null(schema: &mut Schema) {
    if let Some(serde_json::Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".to_owned(), only);
        }
    }
    if let Some(serde_json::Value::Array(any)) = schema.get_mut("anyOf") {
        any.retain(|one| one.get("type").is_none_or(|name| name != "null"));
        if let [serde_json::Value::Object(only)] = any.as_slice() {
            let only = only.clone();
            schema.remove("anyOf");
            for (key, value) in only {
                // What is said about the key goes before what is said about its type.
                if schema.get(&key).is_none() {
                    schema.insert(key, value);
                }
            }
        }
    }
    transform_subschemas(&mut without_null, schema);
}
