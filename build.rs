//! Links `locald-shim` statically on Linux where the C library can be: each service starts it twice, and binding a shared
//! library takes longer than all else that it does before its first line (docs/decisions/0012-a-static-shim.md).

#![allow(clippy::print_stdout, reason = "it is how a build script talks to cargo")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// What rustc and the libc crate may ask for, and what answers instead: a name is looked up in our directory first.
const LIBRARIES: [(&str, &str); 7] = [
    ("c", "GROUP(-l:libc.a -l:libgcc_eh.a -l:libgcc.a)"),
    ("gcc_s", "INPUT(-l:libgcc_eh.a)"),
    ("m", "INPUT(-l:libm.a)"),
    ("pthread", "INPUT(-l:libpthread.a)"),
    ("util", "INPUT(-l:libutil.a)"),
    ("rt", "INPUT(-l:librt.a)"),
    ("dl", "INPUT(-l:libdl.a)"),
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |key: &str, value: &str| env::var(key).is_ok_and(|actual| actual == value);
    // musl is static by itself, and so is whoever asked for `crt-static`.
    let is_static_already =
        env::var("CARGO_CFG_TARGET_FEATURE").is_ok_and(|all| all.split(',').any(|one| one == "crt-static"));
    // Whoever has chosen a linker or the model of code knows why.
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let is_chosen = ["linker", "link-arg", "relocation-model"].iter().any(|flag| flags.contains(flag));
    if !is("CARGO_CFG_TARGET_OS", "linux") || !is("CARGO_CFG_TARGET_ENV", "gnu") || is_static_already || is_chosen {
        return Ok(());
    }
    let dir = PathBuf::from(env::var("OUT_DIR")?);
    for (name, script) in LIBRARIES {
        fs::write(dir.join(format!("lib{name}.so")), script)?;
    }
    // Some systems ship the static C library apart, and with a shared one everything works as well.
    if links(&dir)? {
        for library in ["libc.a", "libgcc_eh.a"] {
            let place = compiler()?.arg(format!("-print-file-name={library}")).output()?;
            println!("cargo::rerun-if-changed={}", String::from_utf8_lossy(&place.stdout).trim());
        }
        for argument in arguments(&dir) {
            println!("cargo::rustc-link-arg-bin=locald-shim={argument}");
        }
    }
    Ok(())
}

/// What the linker is told on top of all that rustc tells it.
fn arguments(dir: &Path) -> [String; 2] {
    [format!("-L{}", dir.display()), "-static-pie".to_owned()]
}

fn compiler() -> Result<Command, Box<dyn Error>> {
    Ok(cc::Build::new().try_get_compiler()?.to_command())
}

/// Whether a program is linked this way, asked for its libraries as rustc asks.
fn links(dir: &Path) -> Result<bool, Box<dyn Error>> {
    let source = dir.join("trial.c");
    fs::write(&source, "int main(void) { return 0; }\n")?;
    let mut cc = compiler()?;
    cc.arg(&source).arg("-o").arg(dir.join("trial")).args(arguments(dir)).arg("-nodefaultlibs").arg("-Wl,-Bdynamic");
    cc.args(LIBRARIES.iter().rev().map(|(name, _)| format!("-l{name}")));
    Ok(cc.output().is_ok_and(|output| output.status.success()))
}
