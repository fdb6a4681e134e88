//! Runs a compiled expression on a packet of which not every byte is known.
//!
//! libpcap's `bpf_filter()` takes a byte that was not captured for one that the packet does not have,
//! and answers no. Here such a byte is a value that is not known: both ways are followed where it decides,
//! and only if they come to different ends the answer is not known either.

use libc::{
    BPF_A, BPF_ABS, BPF_ADD, BPF_ALU, BPF_AND, BPF_B, BPF_DIV, BPF_H, BPF_IMM, BPF_IND, BPF_JA,
    BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_JSET, BPF_LD, BPF_LDX, BPF_LEN, BPF_LSH, BPF_MEM,
    BPF_MISC, BPF_MOD, BPF_MSH, BPF_MUL, BPF_NEG, BPF_OR, BPF_RET, BPF_RSH, BPF_ST, BPF_STX,
    BPF_SUB, BPF_TAX, BPF_TXA, BPF_W, BPF_X, BPF_XOR, sock_filter,
};

/// Words of scratch memory, `BPF_MEMWORDS` (pcap/bpf.h, libpcap 1.10).
const MEMORY: usize = 16;
/// Steps over all ways that are followed. `protochain` makes loops, one round per extension header.
const STEPS: u32 = 20_000;
/// An IPv4 header's length at the most, what `4*([14]&0xf)` gives.
const IP_HEADER: usize = 60;

/// Whether a packet meets an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does.
    Match,
    /// It does not.
    NoMatch,
    /// What would decide it is not known of this packet.
    Unknown,
}

/// A piece of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loaded {
    /// Host order.
    Value(u32),
    /// The packet ends before it.
    Outside,
    /// The packet has it, but it was not captured.
    Unknown,
}

/// A packet as a program sees it.
pub(super) trait Packet {
    /// `size` bytes, 4 at the most, from `at` on.
    fn load(&self, at: u64, size: usize) -> Loaded;
    /// The packet's length, link-layer header included.
    fn wire_len(&self) -> u32;
}

/// The machine, where a way of the program has come to. A register that is `None` is not known.
#[derive(Clone, Copy)]
struct State {
    at: usize,
    a: Option<u32>,
    x: Option<u32>,
    memory: [Option<u32>; MEMORY],
}

/// Runs `program`, as libpcap's `bpf_filter()` does where everything is known.
pub(super) fn run(program: &[sock_filter], packet: &impl Packet) -> Verdict {
    let mut state = State {
        at: 0,
        a: Some(0),
        x: Some(0),
        memory: [Some(0); MEMORY],
    };
    let mut open: Vec<State> = Vec::new();
    let mut verdict = None;
    for _ in 0..STEPS {
        let Some(instruction) = program.get(state.at) else {
            return Verdict::Unknown;
        };
        let way = state.step(instruction, packet);
        let end = match way {
            Way::On => continue,
            Way::Either(other) => {
                open.push(State { at: other, ..state });
                continue;
            }
            Way::OnOrOut => {
                open.push(State {
                    at: usize::MAX,
                    ..state
                });
                continue;
            }
            Way::End(None) => return Verdict::Unknown,
            Way::End(Some(end)) => end,
        };
        if *verdict.get_or_insert(end) != end {
            return Verdict::Unknown;
        }
        loop {
            match open.pop() {
                // A load that may have been outside.
                Some(next) if next.at == usize::MAX => {
                    if verdict == Some(true) {
                        return Verdict::Unknown;
                    }
                }
                Some(next) => {
                    state = next;
                    break;
                }
                None if verdict == Some(true) => return Verdict::Match,
                None => return Verdict::NoMatch,
            }
        }
    }
    Verdict::Unknown
}

/// Where an instruction leads.
enum Way {
    /// To `State::at`.
    On,
    /// There, or to another one.
    Either(usize),
    /// There, or out of the packet, which is a no.
    OnOrOut,
    /// The program's end: yes, no or not known.
    End(Option<bool>),
}

impl State {
    fn step(&mut self, instruction: &sock_filter, packet: &impl Packet) -> Way {
        let (code, k) = (u32::from(instruction.code), instruction.k);
        self.at += 1;
        match code & 7 {
            BPF_LD | BPF_LDX => return self.load(code, k, packet),
            BPF_ST | BPF_STX => {
                let value = if code & 7 == BPF_ST { self.a } else { self.x };
                match self.memory.get_mut(k as usize) {
                    Some(slot) => *slot = value,
                    None => return Way::End(None),
                }
            }
            BPF_ALU => return self.calculate(code, k),
            BPF_JMP => return self.jump(code, instruction),
            BPF_RET if code & 0x18 == BPF_A => return Way::End(self.a.map(|a| a != 0)),
            BPF_RET => return Way::End(Some(k != 0)),
            BPF_MISC if code & 0xf8 == BPF_TAX => self.x = self.a,
            BPF_MISC if code & 0xf8 == BPF_TXA => self.a = self.x,
            _ => return Way::End(None),
        }
        Way::On
    }

    fn load(&mut self, code: u32, k: u32, packet: &impl Packet) -> Way {
        let size = match code & 0x18 {
            BPF_W => 4,
            BPF_H => 2,
            BPF_B => 1,
            _ => return Way::End(None),
        };
        let mut way = Way::On;
        let value = match code & 0xe0 {
            BPF_IMM => Some(k),
            BPF_LEN => Some(packet.wire_len()),
            BPF_MEM => match self.memory.get(k as usize) {
                Some(value) => *value,
                None => return Way::End(None),
            },
            BPF_ABS | BPF_IND | BPF_MSH => {
                let base = if code & 0xe0 == BPF_IND {
                    self.x
                } else {
                    Some(0)
                };
                let loaded = match base {
                    Some(base) => packet.load(u64::from(base) + u64::from(k), size),
                    None => {
                        way = Way::OnOrOut;
                        Loaded::Unknown
                    }
                };
                match loaded {
                    Loaded::Outside => return Way::End(Some(false)),
                    Loaded::Unknown => None,
                    Loaded::Value(value) if code & 0xe0 == BPF_MSH => Some((value & 0xf) * 4),
                    Loaded::Value(value) => Some(value),
                }
            }
            _ => return Way::End(None),
        };
        if code & 7 == BPF_LD {
            self.a = value;
        } else {
            self.x = value;
        }
        way
    }

    fn calculate(&mut self, code: u32, k: u32) -> Way {
        let by = if code & 0x8 == BPF_X { self.x } else { Some(k) };
        let operation = code & 0xf0;
        if operation == BPF_NEG {
            self.a = self.a.map(u32::wrapping_neg);
            return Way::On;
        }
        let divides = matches!(operation, BPF_DIV | BPF_MOD);
        let way = match by {
            // Division by zero is a no.
            Some(0) if divides => return Way::End(Some(false)),
            None if divides => Way::OnOrOut,
            _ => Way::On,
        };
        let (Some(a), Some(by)) = (self.a, by) else {
            self.a = None;
            return way;
        };
        self.a = match operation {
            BPF_ADD => Some(a.wrapping_add(by)),
            BPF_SUB => Some(a.wrapping_sub(by)),
            BPF_MUL => Some(a.wrapping_mul(by)),
            BPF_DIV => a.checked_div(by),
            BPF_MOD => a.checked_rem(by),
            BPF_AND => Some(a & by),
            BPF_OR => Some(a | by),
            BPF_XOR => Some(a ^ by),
            BPF_LSH => Some(a.checked_shl(by).unwrap_or(0)),
            BPF_RSH => Some(a.checked_shr(by).unwrap_or(0)),
            _ => return Way::End(None),
        };
        way
    }

    fn jump(&mut self, code: u32, instruction: &sock_filter) -> Way {
        let k = instruction.k;
        if code & 0xf0 == BPF_JA {
            // Signed: protochain jumps back.
            let to = i64::try_from(self.at)
                .map(|at| at + i64::from(k.cast_signed()))
                .ok()
                .and_then(|to| usize::try_from(to).ok());
            return match to {
                Some(to) => {
                    self.at = to;
                    Way::On
                }
                None => Way::End(None),
            };
        }
        let with = if code & 0x8 == BPF_X { self.x } else { Some(k) };
        let yes = self.at + usize::from(instruction.jt);
        let no = self.at + usize::from(instruction.jf);
        let (Some(a), Some(with)) = (self.a, with) else {
            self.at = yes;
            return if yes == no { Way::On } else { Way::Either(no) };
        };
        let holds = match code & 0xf0 {
            BPF_JEQ => a == with,
            BPF_JGT => a > with,
            BPF_JGE => a >= with,
            BPF_JSET => a & with != 0,
            _ => return Way::End(None),
        };
        self.at = if holds { yes } else { no };
        Way::On
    }
}

/// The first byte that `program` cannot read, whatever the packet; `None` if it can read any.
pub(super) fn reach(program: &[sock_filter]) -> Option<usize> {
    let mut end = 0;
    // What X can be at the most.
    let mut x = Some(0);
    for instruction in program {
        let (code, k) = (u32::from(instruction.code), instruction.k as usize);
        x = match (code & 7, code & 0xe0) {
            (BPF_LDX, BPF_MSH) => x.map(|x: usize| x.max(IP_HEADER)),
            (BPF_LDX, BPF_IMM) => x.map(|x| x.max(k)),
            (BPF_LDX, _) => None,
            (BPF_MISC, _) if code & 0xf8 == BPF_TAX => None,
            _ => x,
        };
    }
    for instruction in program {
        let (code, k) = (u32::from(instruction.code), instruction.k as usize);
        let size = match code & 0x18 {
            BPF_W => 4,
            BPF_H => 2,
            _ => 1,
        };
        let reads = match (code & 7, code & 0xe0) {
            (BPF_LD, BPF_ABS) | (BPF_LDX, BPF_MSH) => k.saturating_add(size),
            (BPF_LD, BPF_IND) => x?.saturating_add(k).saturating_add(size),
            _ => 0,
        };
        end = end.max(reads);
    }
    Some(end)
}
