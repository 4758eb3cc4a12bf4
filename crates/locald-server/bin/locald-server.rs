//! The program `locald-server`.

fn main() -> std::process::ExitCode {
    locald_server::main()
}
