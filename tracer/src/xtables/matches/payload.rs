//! Matches on any bytes of the packet.

use std::fmt::{self, Write as _};

use zerocopy::FromBytes;

use super::super::info::{Cond, Not, Span, read, text};

/// `string`: `struct xt_string_info`, revisions 0 and 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StringMatch {
    /// First byte of the packet (from the IP header) where it may begin.
    pub from: u16,
    /// Last byte.
    pub to: u16,
    /// `bm`, `kmp`, `fsm`.
    pub algo: String,
    /// What is looked for.
    pub pattern: Cond<Vec<u8>>,
    /// Letters of either case are the same.
    pub ignore_case: bool,
    /// Its revision.
    pub rev: u8,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawString {
    from: u16,
    to: u16,
    algo: [u8; 16],
    pattern: [u8; 128],
    len: u8,
    flags: u8,
    _config: u64,
}

const _: () = assert!(size_of::<RawString>() == 160);

impl StringMatch {
    pub(super) fn decode(rev: u8, info: &[u8]) -> Option<Self> {
        let raw: RawString = read(info)?;
        // In revision 0 the byte of flags is a truth value.
        let inverted = if rev == 0 {
            raw.flags != 0
        } else {
            raw.flags & 1 != 0
        };
        let pattern = raw.pattern.get(..usize::from(raw.len))?;
        Some(Self {
            from: raw.from,
            to: raw.to,
            algo: text(&raw.algo),
            pattern: Cond::new(pattern.to_vec(), inverted),
            ignore_case: rev > 0 && raw.flags & 2 != 0,
            rev,
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        let Cond { want, inverted } = &self.pattern;
        let printable =
            want.iter().all(|byte| matches!(byte, 0x20..=0x7e)) && want.last() != Some(&b'\\');
        if printable {
            write!(out, "{} --string \"", Not(*inverted))?;
            for byte in want {
                if matches!(byte, b'"' | b'\\') {
                    out.push('\\');
                }
                out.push(char::from(*byte));
            }
            out.push('"');
        } else {
            write!(out, "{} --hex-string \"|", Not(*inverted))?;
            for byte in want {
                write!(out, "{byte:02x}")?;
            }
            out.push_str("|\"");
        }
        write!(out, " --algo {}", self.algo)?;
        if self.from != 0 {
            write!(out, " --from {}", self.from)?;
        }
        if self.to != u16::MAX {
            write!(out, " --to {}", self.to)?;
        }
        if self.ignore_case {
            out.push_str(" --icase");
        }
        Ok(())
    }
}

/// `u32`: `struct xt_u32`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct U32 {
    /// All must hold.
    pub tests: Vec<U32Test>,
    /// Turned round, as a whole.
    pub inverted: bool,
}

/// `struct xt_u32_test`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct U32Test {
    /// The first offset.
    pub start: u32,
    /// What is done with the word, in order.
    pub steps: Vec<(U32Op, u32)>,
    /// One of these must contain the result.
    pub values: Vec<Span<u32>>,
}

/// `XT_U32_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum U32Op {
    /// `&`.
    And,
    /// `<<`.
    ShiftLeft,
    /// `>>`.
    ShiftRight,
    /// `@`: the word is an offset that is added to the position; read there.
    At,
    /// Not known.
    Other(u8),
}

/// `XT_U32_MAXSIZE` + 1.
const U32_MAX: usize = 11;

#[derive(FromBytes)]
#[repr(C)]
struct RawU32 {
    tests: [RawU32Test; U32_MAX],
    count: u8,
    inverted: u8,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawU32Test {
    locations: [RawU32Location; U32_MAX],
    values: [[u32; 2]; U32_MAX],
    locations_count: u8,
    values_count: u8,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawU32Location {
    number: u32,
    op: u8,
}

const _: () = assert!(size_of::<RawU32>() == 1984);

impl U32 {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawU32 = read(info)?;
        let tests = raw.tests.get(..usize::from(raw.count))?;
        Some(Self {
            tests: tests.iter().map(U32Test::decode).collect::<Option<_>>()?,
            inverted: raw.inverted != 0,
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        write!(out, "{} --u32 \"", Not(self.inverted))?;
        for (at, test) in self.tests.iter().enumerate() {
            write!(out, "{}{test}", if at == 0 { "" } else { "&&" })?;
        }
        out.push('"');
        Ok(())
    }
}

impl U32Test {
    fn decode(raw: &RawU32Test) -> Option<Self> {
        let locations = raw.locations.get(..usize::from(raw.locations_count))?;
        let values = raw.values.get(..usize::from(raw.values_count))?;
        let (first, rest) = locations.split_first()?;
        let step = |location: &RawU32Location| {
            let op = match location.op {
                0 => U32Op::And,
                1 => U32Op::ShiftLeft,
                2 => U32Op::ShiftRight,
                3 => U32Op::At,
                other => U32Op::Other(other),
            };
            (op, location.number)
        };
        Some(Self {
            start: first.number,
            steps: rest.iter().map(step).collect(),
            values: values.iter().map(|range| Span::from(*range)).collect(),
        })
    }
}

impl fmt::Display for U32Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.start)?;
        for (op, number) in &self.steps {
            let op = match op {
                U32Op::And => "&",
                U32Op::ShiftLeft => "<<",
                U32Op::ShiftRight => ">>",
                U32Op::At => "@",
                U32Op::Other(_) => "?",
            };
            write!(f, "{op}{number:#x}")?;
        }
        f.write_char('=')?;
        for (at, Span { min, max }) in self.values.iter().enumerate() {
            write!(f, "{}{min:#x}", if at == 0 { "" } else { "," })?;
            if min != max {
                write!(f, ":{max:#x}")?;
            }
        }
        Ok(())
    }
}

/// `bpf`: `struct xt_bpf_info` (revision 0), `xt_bpf_info_v1` (revision 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bpf {
    /// Classic BPF on the packet from its IP header.
    Bytecode(Vec<BpfInsn>),
    /// A pinned object, by its path.
    Pinned(String),
}

/// `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes)]
#[repr(C)]
pub struct BpfInsn {
    /// Code.
    pub code: u16,
    /// Jump if true.
    pub jt: u8,
    /// Jump if false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// `XT_BPF_MAX_NUM_INSTR`.
const BPF_MAX: usize = 64;

#[derive(FromBytes)]
#[repr(C)]
struct RawBpf0 {
    count: u16,
    program: [BpfInsn; BPF_MAX],
    _filter: u64,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawBpf1 {
    mode: u16,
    count: u16,
    _fd: i32,
    program: [BpfInsn; BPF_MAX],
    _filter: u64,
}

/// The same structure with the other arm of its union.
#[derive(FromBytes)]
#[repr(C)]
struct RawBpf1Path {
    _head: u64,
    path: [u8; BPF_MAX * size_of::<BpfInsn>()],
    _filter: u64,
}

const _: () = assert!(size_of::<RawBpf0>() == 528);
const _: () = assert!(size_of::<RawBpf1>() == 528);
const _: () = assert!(size_of::<RawBpf1Path>() == 528);

impl Bpf {
    pub(super) fn decode(rev: u8, info: &[u8]) -> Option<Self> {
        let bytecode = |program: &[BpfInsn; BPF_MAX], count: u16| {
            let program = program.get(..usize::from(count))?;
            Some(Self::Bytecode(program.to_vec()))
        };
        match rev {
            0 => {
                let raw: RawBpf0 = read(info)?;
                bytecode(&raw.program, raw.count)
            }
            1 => {
                let raw: RawBpf1 = read(info)?;
                match raw.mode {
                    0 => bytecode(&raw.program, raw.count),
                    1 => read::<RawBpf1Path>(info).map(|raw| Self::Pinned(text(&raw.path))),
                    // A file descriptor of the program that made the rule means nothing here.
                    _ => None,
                }
            }
            _ => None,
        }
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        match self {
            Self::Pinned(path) => write!(out, " --object-pinned {path}"),
            Self::Bytecode(program) => {
                write!(out, " --bytecode \"{}", program.len())?;
                for BpfInsn { code, jt, jf, k } in program {
                    write!(out, ",{code} {jt} {jf} {k}")?;
                }
                out.push('"');
                Ok(())
            }
        }
    }
}
