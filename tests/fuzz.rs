//! What takes bytes from outside takes any: the seeds of the fuzzers, and some changes of each. `cargo fuzz` finds more, and
//! longer (`fuzz/`).

#[path = "../fuzz/targets.rs"]
mod targets;

use std::path::Path;

/// How many changes of each seed: some seconds in all.
const CHANGES: usize = 500;

/// The same numbers in every run (xorshift; Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit.max(1) as u64).unwrap_or(0)
    }
}

/// Flips, cuts, repeats and replaces parts of a seed.
fn change(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[at] = [0, 0xff, b'"', b'\n', b'\\', 0x80][random.below(6)],
            2 => bytes.truncate(at),
            3 => {
                let part = bytes[at..(at + random.below(40)).min(bytes.len())].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, part);
            }
            4 => drop(bytes.drain(at..(at + random.below(12)).min(bytes.len()))),
            _ => bytes.insert(at, b'0' + u8::try_from(random.below(10)).unwrap_or(0)),
        }
    }
    bytes
}

#[test]
fn any_bytes_are_taken() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for (name, target) in targets::TARGETS {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
        let mut seeds: Vec<_> =
            std::fs::read_dir(&dir).expect("seeds").map(|entry| entry.expect("a seed").path()).collect();
        seeds.sort();
        assert!(!seeds.is_empty(), "{name} has seeds");
        for seed in seeds {
            let bytes = std::fs::read(&seed).expect("a seed");
            target(&bytes);
            for number in 0..CHANGES {
                let changed = change(&bytes, &mut random);
                let taken = std::panic::catch_unwind(|| target(&changed));
                assert!(
                    taken.is_ok(),
                    "{name}, change {number} of {}: {:?}",
                    seed.display(),
                    changed.escape_ascii().to_string()
                );
            }
        }
        target(&[]);
    }
}
