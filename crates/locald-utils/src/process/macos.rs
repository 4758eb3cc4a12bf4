//! How macOS is asked about processes.
