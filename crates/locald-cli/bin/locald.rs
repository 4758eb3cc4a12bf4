//! The program `locald`.

fn main() -> std::process::ExitCode {
    locald_cli::main()
}
