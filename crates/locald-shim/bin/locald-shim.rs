//! The program `locald-shim`.

fn main() -> std::process::ExitCode {
    locald_shim::main()
}
