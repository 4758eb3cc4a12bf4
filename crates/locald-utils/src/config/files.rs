//! The patterns of a project file: `watch` and `inputs`.

use super::diagnostic::Mistake;
use super::resolve::{Resolver, value};
use super::value::{OneOrMany, Text};
use super::written::{Service, Watched};
use crate::fileset::FileSet;
use crate::spec::{Inputs, Kind, Watch};

impl Resolver<'_> {
    /// What a service is run again for.
    pub(super) fn watch(&mut self, service: &Service) -> Option<Watch> {
        let key = service.watch.as_ref()?;
        let (paths, debounce) = match key.value.as_ref()? {
            Watched::Paths(paths) => (paths, None),
            Watched::Table(table) => {
                if table.paths.is_none() && !table.guessed.contains(&"paths") {
                    let help = "add `paths = [\"src/**/*.ts\"]`";
                    self.mistakes.push(Mistake::at(key.span.clone(), "`watch` does not say what").help(help).absence());
                }
                (value(&table.paths)?, value(&table.debounce))
            }
        };
        let paths = self.patterns("watch", paths, key.span.clone())?;
        Some(Watch { paths, debounce: debounce.map_or(Watch::DEBOUNCE, |time| time.0) })
    }

    /// What a job makes something of.
    pub(super) fn inputs(&mut self, service: &Service) -> Option<Inputs> {
        let key = service.inputs.as_ref()?;
        let kind = value(&service.r#type).map_or_else(Kind::default, |kind| kind.0);
        // A type that could not be read may have been this one.
        let is_said = service.r#type.as_ref().is_none_or(|kind| kind.value.is_some());
        if kind != Kind::Job && is_said {
            let help = "add `type = \"job\"`; a service that is to run again when files change has `watch`";
            self.mistakes.push(Mistake::at(key.span.clone(), "only a job has `inputs`").help(help));
            return None;
        }
        let paths = self.patterns("inputs", key.value.as_ref()?, key.span.clone())?;
        Some(Inputs { paths, digest: None })
    }

    fn patterns(
        &mut self,
        key: &str,
        OneOrMany(written): &OneOrMany,
        span: std::ops::Range<usize>,
    ) -> Option<Vec<String>> {
        if !written.iter().any(|pattern| !pattern.text.starts_with('!')) {
            let help = "write what is meant: [\"src/**/*.ts\"]; a pattern with `!` in front takes something of it away";
            self.mistakes.push(Mistake::at(span, format!("`{key}` names no files")).help(help));
            return None;
        }
        let mut patterns = Vec::new();
        for Text { text, span } in written {
            match FileSet::new(self.around.dir, [text.as_str()]) {
                Ok(_) => patterns.push(text.clone()),
                Err(error) => {
                    let message = format!("`{}` is no pattern of files: {error}", text.escape_debug());
                    let help = "`*` stands for anything but `/`, `**` for any directories, `{a,b}` for one of two";
                    self.mistakes.push(Mistake::at(span.clone(), message).help(help));
                }
            }
        }
        (patterns.len() == written.len()).then_some(patterns)
    }
}
