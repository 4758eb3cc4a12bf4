//! What the three programs of locald agree on.
//!
//! Names and specs are the vocabulary, `config` turns a project file into specs, the two protocols and `frame` are what
//! crosses a socket, `log` is the store every reader shares, `process` asks the kernel, `paths` knows where things lie.
//! Nothing in here decides whether or when a service runs.

pub mod config;
pub mod digest;
pub mod environment;
pub mod exports;
pub mod fail;
pub mod fileset;
pub mod frame;
pub mod health;
pub mod log;
pub mod name;
pub mod paths;
pub mod process;
pub mod protocol;
pub mod record;
pub mod redaction;
pub mod selection;
pub mod shim_protocol;
pub mod spec;
pub mod time;
