//! /proc/kallsyms: where the few functions are that fwtrace asks for.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    ops::Range,
};

const KALLSYMS: &str = "/proc/kallsyms";

/// Why the kernel's symbols are not known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SymbolsError {
    /// The file could not be read.
    #[error("cannot read {KALLSYMS}: {0} (a kernel without CONFIG_KALLSYMS does not have it)")]
    Io(#[from] io::Error),
    /// Every address is zero.
    #[error(
        "{KALLSYMS} hides the kernel's addresses: it takes CAP_SYSLOG (run it with sudo), and \
         the sysctl kernel.kptr_restrict must not be 2"
    )]
    Hidden,
}

/// One occurrence of a wanted function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Symbol {
    /// As asked for.
    name: &'static str,
    start: u64,
    /// Where the next symbol starts.
    end: u64,
    /// What the compiler made of it.
    part: Part,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// The function under its own name.
    Whole,
    /// `.constprop.0`, `.isra.0`, `.part.0`: the function, or most of it, specialised.
    Variant,
    /// `.cold`: its unlikely paths, moved elsewhere.
    Cold,
}

/// Where the wanted functions are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbols {
    /// By start.
    found: Vec<Symbol>,
}

impl Symbols {
    /// Reads /proc/kallsyms and keeps the functions called one of `names`, also where the compiler
    /// has added a suffix (`NAME.constprop.0`, `NAME.isra.0`, `NAME.part.0`, `NAME.cold`). A name
    /// that the kernel does not have, or whose module is not loaded, is no error.
    ///
    /// # Errors
    /// When the file cannot be read, or hides the addresses.
    pub fn load(names: &[&'static str]) -> Result<Self, SymbolsError> {
        // The kernel hands out a page a read at most.
        Self::read(BufReader::with_capacity(4096, File::open(KALLSYMS)?), names)
    }

    /// As [`Symbols::load`], from text in the format of /proc/kallsyms: address in hexadecimal,
    /// type, name, and for a module's symbol its name in brackets. Other lines are passed over.
    ///
    /// # Errors
    /// As [`Symbols::load`].
    pub fn read(mut lines: impl BufRead, names: &[&'static str]) -> Result<Self, SymbolsError> {
        let wanted = Wanted::new(names);
        let mut found: Vec<Symbol> = Vec::new();
        let mut addresses: Vec<u64> = Vec::with_capacity(1 << 17);
        let mut line = Vec::with_capacity(256);
        while lines.read_until(b'\n', &mut line)? != 0 {
            if let Some((start, kind, name)) = split(&line) {
                addresses.push(start);
                if matches!(kind, b't' | b'T' | b'w' | b'W')
                    && let Some((name, part)) = wanted.recognise(name)
                {
                    found.push(Symbol {
                        name,
                        start,
                        end: start,
                        part,
                    });
                }
            }
            line.clear();
        }
        if !addresses.is_empty() && addresses.iter().all(|&address| address == 0) {
            return Err(SymbolsError::Hidden);
        }
        // A few sorted runs: the kernel's own, then each module's. The stable sort merges those.
        addresses.sort();
        for symbol in &mut found {
            let next = addresses.partition_point(|&address| address <= symbol.start);
            // The very last symbol has no known end, and matches nothing.
            symbol.end = addresses.get(next).copied().unwrap_or(symbol.start);
        }
        found.sort_by_key(|symbol| symbol.start);
        Ok(Self { found })
    }

    /// Where a function is: under its own name, else its only variant. `None` when the kernel has
    /// no such function or several.
    pub fn range(&self, name: &str) -> Option<Range<u64>> {
        [Part::Whole, Part::Variant].into_iter().find_map(|part| {
            let mut matching = self
                .found
                .iter()
                .filter(|symbol| symbol.name == name && symbol.part == part);
            match (matching.next(), matching.next()) {
                (Some(symbol), None) => Some(symbol.start..symbol.end),
                _ => None,
            }
        })
    }

    /// The wanted function that `address` is in, in whatever part of it, and how far from that
    /// part's start.
    pub fn find(&self, address: u64) -> Option<(&'static str, u64)> {
        let after = self.found.partition_point(|symbol| symbol.start <= address);
        let symbol = self.found.get(after.checked_sub(1)?)?;
        (address < symbol.end).then(|| (symbol.name, address - symbol.start))
    }
}

/// The function that `address` is in, `function+0xoffset`; `None` if it is in none that
/// /proc/kallsyms shows. Reads all of it: for the few addresses that need a name.
pub fn describe(address: u64) -> Option<String> {
    nearest(
        BufReader::with_capacity(4096, File::open(KALLSYMS).ok()?),
        address,
    )
}

fn nearest(mut lines: impl BufRead, address: u64) -> Option<String> {
    let mut best: Option<(u64, String)> = None;
    let mut line = Vec::with_capacity(256);
    while lines.read_until(b'\n', &mut line).ok()? != 0 {
        if let Some((start, b't' | b'T' | b'w' | b'W', name)) = split(&line)
            && start != 0
            && start <= address
            && best.as_ref().is_none_or(|(known, _)| *known < start)
        {
            let name = name.split(u8::is_ascii_whitespace).next()?;
            best = Some((start, String::from_utf8_lossy(name).into_owned()));
        }
        line.clear();
    }
    let (start, name) = best?;
    Some(format!("{name}+{:#x}", address - start))
}

/// Address, type and the rest of a line, which begins with the name.
fn split(line: &[u8]) -> Option<(u64, u8, &[u8])> {
    let mut address = 0_u64;
    let mut digits = 0;
    for &byte in line {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => break,
        };
        address = (address << 4) | u64::from(digit);
        digits += 1;
    }
    match line.get(digits..)? {
        [b' ', kind, b' ', rest @ ..] if (1..=16).contains(&digits) => Some((address, *kind, rest)),
        _ => None,
    }
}

/// The names asked for, to look up each of the kernel's hundred thousand.
struct Wanted {
    /// Sorted.
    names: Vec<&'static str>,
    /// By first byte: bit N is set when there is a name of N bytes; 63 stands for longer ones.
    lengths: [u64; 256],
}

impl Wanted {
    fn new(names: &[&'static str]) -> Self {
        let mut names = names.to_vec();
        names.sort_unstable();
        names.dedup();
        let mut lengths = [0; 256];
        for name in &names {
            if let Some(bits) = name
                .bytes()
                .next()
                .and_then(|first| lengths.get_mut(usize::from(first)))
            {
                *bits |= length_bit(name.len());
            }
        }
        Self { names, lengths }
    }

    /// `rest`: a name, what the compiler may have added after a dot, then white space.
    fn recognise(&self, rest: &[u8]) -> Option<(&'static str, Part)> {
        let is_end = |b: &u8| matches!(b, b'.' | b'\t' | b' ' | b'\n');
        let len = rest.iter().position(is_end).unwrap_or(rest.len());
        let lengths = self.lengths.get(usize::from(*rest.first()?))?;
        if lengths & length_bit(len) == 0 {
            return None;
        }
        let (name, rest) = rest.split_at_checked(len)?;
        let index = self
            .names
            .binary_search_by(|known| known.as_bytes().cmp(name))
            .ok()?;
        let suffix = rest.split(|b| is_end(b) && *b != b'.').next()?;
        let part = if suffix.is_empty() {
            Part::Whole
        } else if suffix.ends_with(b".cold") {
            Part::Cold
        } else {
            Part::Variant
        };
        Some((self.names.get(index)?, part))
    }
}

fn length_bit(len: usize) -> u64 {
    1 << len.min(63)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _text
ffffffff81000100 t nft_do_chain.cold
ffffffff81001000 T ip_rcv
ffffffff81001000 T ip_rcv_alias
ffffffff81001200 t ip_rcv_core.isra.0
ffffffff81002000 t __netif_receive_skb_core.constprop.0
ffffffff81003000 t twice
ffffffff81003100 t twice
ffffffff81003200 d ip_data
ffffffffc0002000 t nft_do_chain\t[nf_tables]
ffffffffc0002400 t nft_next\t[nf_tables]
ffffffffc0001000 t last.part.0\t[other]
ffffffffc0001080 t last.isra.1\t[other]
ffffffffc0009000 t end_of_all\t[other]
";

    #[test]
    fn an_address_is_described_by_the_function_before_it() {
        let describe = |address| nearest(TEXT.as_bytes(), address);
        assert_eq!(
            describe(0xffff_ffff_8100_1010).as_deref(),
            Some("ip_rcv+0x10")
        );
        assert_eq!(
            describe(0xffff_ffff_c000_2404).as_deref(),
            Some("nft_next+0x4")
        );
        assert_eq!(describe(0x1000), None);
    }

    const NAMES: &[&str] = &[
        "nft_do_chain",
        "ip_rcv",
        "__netif_receive_skb_core",
        "twice",
        "ip_data",
        "last",
        "absent",
        "end_of_all",
    ];

    fn symbols() -> Symbols {
        Symbols::read(TEXT.as_bytes(), NAMES).unwrap()
    }

    #[test]
    fn a_function_ends_where_the_next_symbol_starts() {
        let symbols = symbols();
        assert_eq!(
            symbols.range("ip_rcv"),
            Some(0xffff_ffff_8100_1000..0xffff_ffff_8100_1200)
        );
        assert_eq!(
            symbols.range("nft_do_chain"),
            Some(0xffff_ffff_c000_2000..0xffff_ffff_c000_2400)
        );
        assert_eq!(
            symbols.range("__netif_receive_skb_core"),
            Some(0xffff_ffff_8100_2000..0xffff_ffff_8100_3000)
        );
    }

    #[test]
    fn no_range_for_what_is_not_there_or_not_one() {
        let symbols = symbols();
        for name in ["absent", "twice", "last", "ip_data", "ip_rcv_core"] {
            assert_eq!(symbols.range(name), None, "{name}");
        }
        assert!(symbols.range("end_of_all").unwrap().is_empty());
    }

    #[test]
    fn finds_the_function_of_an_address() {
        let symbols = symbols();
        assert_eq!(symbols.find(0xffff_ffff_8100_1000), Some(("ip_rcv", 0)));
        assert_eq!(symbols.find(0xffff_ffff_8100_11ff), Some(("ip_rcv", 0x1ff)));
        assert_eq!(symbols.find(0xffff_ffff_8100_1200), None);
        assert_eq!(
            symbols.find(0xffff_ffff_8100_0fff),
            Some(("nft_do_chain", 0xeff))
        );
        assert_eq!(symbols.find(0xffff_ffff_8100_3150), Some(("twice", 0x50)));
        assert_eq!(symbols.find(0xffff_ffff_c000_1090), Some(("last", 0x10)));
        for address in [0, 1, 0xffff_ffff_c000_9000, u64::MAX] {
            assert_eq!(symbols.find(address), None);
        }
    }

    #[test]
    fn addresses_that_are_all_zero_are_hidden_ones() {
        let text = "0000000000000000 T _text\n0000000000000000 T ip_rcv\n";
        let error = Symbols::read(text.as_bytes(), NAMES).unwrap_err();
        assert!(matches!(error, SymbolsError::Hidden));
        let message = error.to_string();
        assert!(message.contains("kernel.kptr_restrict") && message.contains("CAP_SYSLOG"));
    }

    #[test]
    fn passes_over_lines_it_does_not_understand() {
        for text in [
            "",
            "\n",
            "zz T ip_rcv\n",
            "12345678901234567 T ip_rcv\n",
            "10 TT ip_rcv\n",
            "10 T \n",
            "10 T",
        ] {
            let symbols = Symbols::read(text.as_bytes(), NAMES).unwrap();
            assert_eq!(symbols, Symbols::default(), "{text:?}");
        }
        let unfinished = Symbols::read(&b"10 T ip_rcv\n20 T x"[..], NAMES).unwrap();
        assert_eq!(unfinished.range("ip_rcv"), Some(0x10..0x20));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in prop::collection::vec(any::<u8>(), 0..512)) {
            if let Ok(symbols) = Symbols::read(&text[..], NAMES) {
                for name in NAMES {
                    let _ = symbols.range(name);
                }
            }
        }

        #[test]
        fn every_line_is_found_where_it_says(starts in prop::collection::btree_set(1_u64..1 << 48, 2..20)) {
            let text: String = starts.iter().map(|start| format!("{start:016x} t ip_rcv\n")).collect();
            let symbols = Symbols::read(text.as_bytes(), NAMES).unwrap();
            let last = starts.last().copied().unwrap();
            for &start in &starts {
                let expected = (start != last).then_some(("ip_rcv", 0));
                prop_assert_eq!(symbols.find(start), expected);
            }
        }
    }

    /// The kernel the test runs on, where this user may see its addresses.
    #[test]
    fn finds_functions_of_the_running_kernel() {
        let Ok(symbols) = Symbols::load(&["ip_rcv", "ip_local_deliver"]) else {
            return;
        };
        let ip_rcv = symbols.range("ip_rcv").unwrap();
        assert!(!ip_rcv.is_empty());
        assert_eq!(symbols.find(ip_rcv.start + 1), Some(("ip_rcv", 1)));
        assert_ne!(symbols.range("ip_local_deliver"), Some(ip_rcv));
    }
}
