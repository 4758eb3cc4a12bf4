//! What a process was started with: the answer of `KERN_PROCARGS2`.

use super::{i32_at, string_at};

/// The largest buffer that the kernel takes for `KERN_PROCARGS2`: `ARG_MAX` (sys/syslimits.h) and the count before it.
/// Only the largest will do: in one that is too small it puts the end of the strings instead of their beginning, with
/// success.
pub const ARGUMENTS_SIZE: usize = 4 + 1024 * 1024;

/// What a process was started with, as `KERN_PROCARGS2` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments<'a> {
    /// The path that was executed, as it was given to exec.
    pub executable: &'a [u8],
    /// Its arguments, the name it was called by included.
    pub argv: Vec<&'a [u8]>,
    /// Its environment at exec.
    pub environment: Environment<'a>,
}

/// The environment that a process was started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Environment<'a> {
    /// The kernel does not show it: the program is restricted by its code signature, as Apple's own are.
    Withheld,
    /// The entries, `NAME=value` as a rule.
    Shown(Vec<&'a [u8]>),
}

impl<'a> Arguments<'a> {
    /// Reads an answer of `KERN_PROCARGS2`. `None` when it is cut off or not laid out as the kernel does.
    ///
    /// The layout: the number of arguments, the executed path, NULs to a multiple of eight, the arguments, the
    /// environment, NULs to a multiple of eight (none, if it ends on one), strings of the kernel. The kernel reads them
    /// from the stack of the process, which may have written over them: what is told here is no proof.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let count = usize::try_from(i32_at(bytes, 0)?).ok()?;
        let strings = bytes.get(4..)?;
        let (executable, end) = string_at(strings, 0)?;
        // What macOS 26 answers for a process that no one may look into: the path stands for the arguments, unpadded.
        if let Some(b"\0") = strings.get(end..).and_then(|rest| rest.strip_prefix(b"\0")?.strip_prefix(executable))
            && count == 1
        {
            return Some(Self { executable, argv: vec![executable], environment: Environment::Withheld });
        }
        let mut at = end.next_multiple_of(ALIGNMENT);
        // No byte of the padding may be missing or mean something. Skipping NULs instead would lose an empty argument.
        if strings.get(end..at)?.iter().any(|&byte| byte != 0) {
            return None;
        }
        // The count is the kernel's, but what it counts is not: every argument must be there, and room is made as it is.
        let mut argv = Vec::new();
        for _ in 0..count {
            let (argument, next) = string_at(strings, at)?;
            argv.push(argument);
            at = next;
        }
        Some(Self { executable, argv, environment: Environment::parse(strings, at) })
    }

    /// The value of an environment variable, where the environment is shown and has it.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&'a [u8]> {
        match &self.environment {
            Environment::Withheld => None,
            Environment::Shown(entries) => {
                entries.iter().find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
            }
        }
    }
}

/// What the kernel pads the strings of a 64-bit program to: the size of a pointer.
const ALIGNMENT: usize = 8;

/// The names of the strings that the kernel puts behind the environment (XNU `exec_add_apple_strings`).
///
/// The C library clears the first ones soon after the start, so any of them may be the first that is seen.
const KERNEL_STRINGS: [&[u8]; 18] = [
    b"executable_path",
    b"pfz",
    b"stack_guard",
    b"malloc_entropy",
    b"ptr_munge",
    b"main_stack",
    b"executable_file",
    b"dyld_file",
    b"executable_cdhash",
    b"executable_boothash",
    b"arm64e_abi",
    b"th_port",
    b"security_config",
    b"ptrauth_disabled",
    b"dyld_flags",
    b"subsystem_root_path",
    b"has_sec_transition",
    b"vm_force_4k_pages",
];

impl<'a> Environment<'a> {
    /// Reads the environment, which begins at `at`.
    ///
    /// Nothing marks its end. It is taken to end before the first string that has a name of the kernel's and stands
    /// where the kernel's can begin: at a multiple of eight, or behind a NUL. Other empty strings are passed over: a
    /// program that shortens its title (node's `process.title`) leaves NULs where its last arguments were. A variable
    /// of that name at such a place would hide those behind it, which is the harmless direction.
    fn parse(strings: &'a [u8], mut at: usize) -> Self {
        // Where the environment is shown, the kernel's strings are as well; so nothing at all is not an empty one.
        if strings.get(at..).is_none_or(|rest| rest.iter().all(|&byte| byte == 0)) {
            return Self::Withheld;
        }
        let mut entries = Vec::new();
        let mut behind_nul = false;
        while let Some((entry, next)) = string_at(strings, at) {
            if !entry.is_empty() {
                if (behind_nul || at.is_multiple_of(ALIGNMENT)) && is_kernel_string(entry) {
                    break;
                }
                entries.push(entry);
            }
            behind_nul = entry.is_empty();
            at = next;
        }
        Self::Shown(entries)
    }
}

fn is_kernel_string(entry: &[u8]) -> bool {
    entry.iter().position(|&byte| byte == b'=').is_some_and(|name| KERNEL_STRINGS.contains(&&entry[..name]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is behind the environment.
    pub(super) enum Kernel {
        /// Nothing, as for a restricted program.
        Withheld,
        /// All strings, as right after exec.
        Intact,
        /// The first ones cleared, as a little later.
        Cleared,
    }

    /// Lays the strings out as XNU does (`exec_extract_strings`, `sysctl_procargsx`).
    pub(super) fn procargs(path: &str, argv: &[&str], env: &[&str], kernel: &Kernel) -> Vec<u8> {
        let pad = |strings: &mut Vec<u8>| strings.resize(strings.len().next_multiple_of(8), 0);
        let mut strings = [path.as_bytes(), b"\0"].concat();
        pad(&mut strings);
        for argument in argv {
            strings.extend([argument.as_bytes(), b"\0"].concat());
        }
        let own: &[&[u8]] = match kernel {
            Kernel::Withheld => &[],
            Kernel::Intact => &[b"pfz=0x7ffffff\0", b"stack_guard=0x1\0", b"ptr_munge=0x2\0", b"th_port=0x103\0"],
            Kernel::Cleared => &[&[0; 14], &[0; 16], b"ptr_munge=\0\0\0\0", b"th_port=\0\0\0\0\0\0"],
        };
        if !own.is_empty() {
            for entry in env {
                strings.extend([entry.as_bytes(), b"\0"].concat());
            }
            pad(&mut strings);
        }
        let argc = i32::try_from(argv.len()).expect("few");
        [&argc.to_le_bytes()[..], &strings, &own.concat()].concat()
    }

    fn texts<'a>(entries: &[&'a str]) -> Vec<&'a [u8]> {
        entries.iter().map(|entry| entry.as_bytes()).collect()
    }

    #[test]
    fn arguments_and_environment_come_back_as_they_were_given() {
        // Paths and environments of every length modulo the padding, so none at all is among it.
        for extra in 0..=8 {
            let path = "/bin/".to_owned() + &"x".repeat(extra);
            let value = "LAST=".to_owned() + &"v".repeat(extra);
            for kernel in [Kernel::Intact, Kernel::Cleared] {
                let argv = ["server", "--port", "80 80"];
                let env = ["LOCALD_RUN=web#7", "EMPTY=", "LOCALD_RUN=later", &value];
                let bytes = procargs(&path, &argv, &env, &kernel);
                let arguments = Arguments::parse(&bytes).expect("laid out by the book");
                assert_eq!(arguments.executable, path.as_bytes());
                assert_eq!(arguments.argv, texts(&argv));
                assert_eq!(arguments.environment, Environment::Shown(texts(&env)));
                assert_eq!(arguments.variable("LOCALD_RUN"), Some(&b"web#7"[..]), "the first one counts");
                assert_eq!(arguments.variable("LOCALD"), None);
            }
        }
    }

    #[test]
    fn an_empty_argument_is_an_argument() {
        for path in ["/bin/x", "/bin/xx", "/bin/xxx"] {
            let bytes = procargs(path, &["", "", "a", ""], &["A=1"], &Kernel::Intact);
            let arguments = Arguments::parse(&bytes).expect("laid out by the book");
            assert_eq!(arguments.argv, texts(&["", "", "a", ""]));
            assert_eq!(arguments.environment, Environment::Shown(texts(&["A=1"])));
        }
        let bytes = procargs("/bin/x", &[], &["A=1"], &Kernel::Intact);
        let arguments = Arguments::parse(&bytes).expect("laid out by the book");
        assert_eq!((arguments.argv.len(), arguments.variable("A")), (0, Some(&b"1"[..])));
    }

    #[test]
    fn an_environment_that_is_withheld_is_not_an_empty_one() {
        for name in ["sh", "xsh", "xxsh", "xxxsh", "xxxxsh", "xxxxxsh", "xxxxxxsh", "xxxxxxxsh"] {
            let empty = |kernel| procargs("/bin/sh", &[name, "-c"], &[], &kernel);
            let bytes = empty(Kernel::Withheld);
            let withheld = Arguments::parse(&bytes).expect("laid out by the book");
            assert_eq!((withheld.argv, withheld.environment), (texts(&[name, "-c"]), Environment::Withheld));
            for kernel in [Kernel::Intact, Kernel::Cleared] {
                let bytes = empty(kernel);
                let arguments = Arguments::parse(&bytes).expect("laid out by the book");
                assert_eq!(arguments.environment, Environment::Shown(Vec::new()), "{name}");
            }
        }
    }

    #[test]
    fn a_program_that_changed_its_title_still_shows_its_environment() {
        // node's `process.title` writes over its arguments and fills up with NULs.
        let mut bytes =
            procargs("/bin/node", &["node", "a/long/server.js", "x"], &["LOCALD_RUN=web#7"], &Kernel::Cleared);
        let title = 4 + "/bin/node\0".len().next_multiple_of(8);
        let arguments = "node\0a/long/server.js\0x\0".len();
        bytes[title..title + arguments].fill(0);
        bytes[title..title + 4].copy_from_slice(b"next");
        let arguments = Arguments::parse(&bytes).expect("laid out by the book");
        assert_eq!(arguments.argv, texts(&["next", "", ""]));
        assert_eq!(arguments.variable("LOCALD_RUN"), Some(&b"web#7"[..]));
    }

    #[test]
    fn an_argument_that_looks_like_a_variable_is_none() {
        let bytes = procargs("/bin/grep", &["grep", "LOCALD_RUN=web#7"], &["A=1"], &Kernel::Intact);
        assert_eq!(Arguments::parse(&bytes).expect("laid out by the book").variable("LOCALD_RUN"), None);
    }

    #[test]
    fn a_process_that_nobody_may_look_into_shows_its_path_only() {
        for path in ["/a", "/ab/cdef", "/abcdef", "/abcdefg"] {
            let bytes = [&1_i32.to_le_bytes(), path.as_bytes(), b"\0\0", path.as_bytes(), b"\0"].concat();
            let argv = texts(&[path]);
            let expected = Arguments { executable: path.as_bytes(), argv, environment: Environment::Withheld };
            assert_eq!(Arguments::parse(&bytes), Some(expected));
        }
    }

    #[test]
    fn arguments_that_are_cut_off_or_miscounted_are_none() {
        let bytes = procargs("/bin/server", &["server", "-v"], &["A=1"], &Kernel::Intact);
        let end_of_arguments = 4 + "/bin/server\0".len().next_multiple_of(8) + "server\0-v\0".len();
        for cut in 0..end_of_arguments {
            assert_eq!(Arguments::parse(&bytes[..cut]), None, "cut at {cut}");
        }
        for cut in end_of_arguments..bytes.len() {
            assert!(Arguments::parse(&bytes[..cut]).is_some(), "cut at {cut}");
        }
        for argc in [-1, i32::MIN, i32::MAX, 100] {
            let bytes = [&argc.to_le_bytes(), &bytes[4..]].concat();
            assert_eq!(Arguments::parse(&bytes), None, "{argc} arguments");
        }
        // The end of the strings, which a buffer that is too small gets: the padding is none.
        let tail = [&2_i32.to_le_bytes(), &b"er\0server\0-v\0A=1\0"[..]].concat();
        assert_eq!(Arguments::parse(&tail), None);
    }

    proptest! {
        #[test]
        fn no_strings_make_the_parser_of_arguments_panic(
            argc in -2..9_i32,
            strings in proptest::collection::vec(prop_oneof![Just(0_u8), Just(b'='), any::<u8>()], 0..200),
        ) {
            let bytes = [&argc.to_le_bytes()[..], &strings].concat();
            let Some(arguments) = Arguments::parse(&bytes) else { return Ok(()) };
            prop_assert_eq!(arguments.argv.len(), usize::try_from(argc).expect("not negative"));
        }

        #[test]
        fn whatever_a_process_was_started_with_is_read_back(
            path in "/[a-z/]{0,20}",
            argv in proptest::collection::vec("[ -~]{0,12}", 2..6),
            env in proptest::collection::vec("[A-Z]{1,8}=[ -~]{0,12}", 0..6),
            cleared in any::<bool>(),
        ) {
            let kernel = if cleared { Kernel::Cleared } else { Kernel::Intact };
            let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
            let env: Vec<&str> = env.iter().map(String::as_str).collect();
            let bytes = procargs(&path, &argv, &env, &kernel);
            let arguments = Arguments::parse(&bytes).expect("laid out by the book");
            prop_assert_eq!(arguments.executable, path.as_bytes());
            prop_assert_eq!(arguments.argv, texts(&argv));
            prop_assert_eq!(arguments.environment, Environment::Shown(texts(&env)));
        }
    }
}

/// A valid answer, for tests that spoil it.
#[cfg(test)]
pub(super) mod fixtures {
    use super::tests::{Kernel, procargs};

    pub(in super::super) fn arguments() -> Vec<u8> {
        procargs("/bin/server", &["server", "", "-v"], &["LOCALD_RUN=web#7", "EMPTY="], &Kernel::Intact)
    }
}
