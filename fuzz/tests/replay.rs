//! Replays the seeds of every target on a stable compiler, whole and damaged.

use std::{fs, path::Path};

use fwtrace_fuzz::TARGETS;

#[test]
fn seeds_and_damaged_seeds_do_not_panic() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for (name, target) in TARGETS {
        let mut count = 0;
        for entry in fs::read_dir(seeds.join(name)).unwrap() {
            let seed = fs::read(entry.unwrap().path()).unwrap();
            target(&seed);
            for len in 0..seed.len() {
                target(&seed[..len]);
            }
            for at in 0..seed.len() {
                let mut damaged = seed.clone();
                for value in [0x00, 0x01, 0x7f, 0x80, 0xff] {
                    damaged[at] = value;
                    target(&damaged);
                }
            }
            count += 1;
        }
        assert!(count > 0, "{name} has no seeds");
    }
}
