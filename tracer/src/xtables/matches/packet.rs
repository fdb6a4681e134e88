//! Matches on fields and bytes of the packet.

use super::super::info::{Cond, Masked, Span};

/// `length`: `struct xt_length_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Length {
    /// IPv4: the total length; IPv6: the payload length and the header's 40.
    pub bytes: Cond<Span<u16>>,
}

/// `ttl` (`struct ipt_ttl_info`) and `hl` (`struct ip6t_hl_info`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hops {
    /// How it is compared.
    pub op: HopsOp,
    /// With what.
    pub value: u8,
}

/// How TTL and hop limit are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HopsOp {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Less.
    Lt,
    /// Greater.
    Gt,
    /// Not known.
    Other(u8),
}

/// `dscp`: `struct xt_dscp_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dscp {
    /// The six high bits of the TOS or traffic class.
    pub dscp: Cond<u8>,
}

/// `tos`, revisions 0 (`struct ipt_tos_info`) and 1 (`struct xt_tos_match_info`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tos {
    /// TOS or traffic class.
    pub tos: Cond<Masked<u8>>,
    /// Its revision: 0 has no mask.
    pub rev: u8,
}

/// `ecn`: `struct xt_ecn_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ecn {
    /// The two bits of the IP header.
    pub ip_ect: Option<Cond<u8>>,
    /// TCP's CWR flag is set (inverted: not set).
    pub tcp_cwr: Option<Cond<()>>,
    /// TCP's ECE flag.
    pub tcp_ece: Option<Cond<()>>,
}

/// `tcpmss`: `struct xt_tcpmss_match_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcpmss {
    /// The option's value. A packet without the option matches only if inverted.
    pub mss: Cond<Span<u16>>,
}

/// `pkttype`: `struct xt_pkttype_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pkttype {
    /// `PACKET_*`: 0 host, 1 broadcast, 2 multicast, 3 other host.
    pub kind: Cond<i32>,
}

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

/// `bpf`: `struct xt_bpf_info` (revision 0), `xt_bpf_info_v1` (revision 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bpf {
    /// Classic BPF on the packet from its IP header.
    Bytecode(Vec<BpfInsn>),
    /// A pinned object, by its path.
    Pinned(String),
}

/// `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// `time`: `struct xt_time_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Time {
    /// First second since 1970.
    pub date_start: u32,
    /// Last second; 0x7fffffff... for none.
    pub date_stop: u32,
    /// First second of the day.
    pub day_start: u32,
    /// Last second of the day; smaller than the first where the range goes over midnight.
    pub day_stop: u32,
    /// Bits 1 to 31; all set for none.
    pub monthdays: u32,
    /// Bits 1 (Monday) to 7; all set for none.
    pub weekdays: u8,
    /// In the kernel's local time rather than UTC.
    pub local: bool,
    /// A range over midnight belongs to the day it begins on.
    pub contiguous: bool,
}
