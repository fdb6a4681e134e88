//! Targets on the connection: CT, marks of connections.

/// `CT`, revisions 0 to 2 (`struct xt_ct_target_info`, `xt_ct_target_info_v1`), and `NOTRACK`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ct {
    /// It is to be printed as `-j NOTRACK`.
    pub alias: bool,
    /// The packet is not tracked.
    pub notrack: bool,
    /// Events, a bit for each (`IPCT_*`); 0 for all.
    pub events: u32,
    /// Events of expectations (`IPEXP_*`).
    pub expect_events: u32,
    /// Helper; empty for none.
    pub helper: String,
    /// Timeout policy; empty for none.
    pub timeout: String,
    /// Zone of conntrack.
    pub zone: Zone,
}

/// Zone of conntrack that `CT` puts a packet in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zone {
    /// The zone; 0 for the default one.
    pub id: u16,
    /// It is the packet's mark rather than `id`.
    pub from_mark: bool,
    /// Only of the original direction.
    pub original: bool,
    /// Only of the reply direction.
    pub reply: bool,
}

/// `CONNMARK`, revisions 1 (`struct xt_connmark_tginfo1`) and 2 (`xt_connmark_tginfo2`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connmark {
    /// What it does.
    pub mode: ConnmarkMode,
    /// Value.
    pub ctmark: u32,
    /// Bits of the connection's mark.
    pub ctmask: u32,
    /// Bits of the packet's mark.
    pub nfmask: u32,
    /// Bits that the mark is shifted by on its way; revision 2 only.
    pub shift: Option<Shift>,
}

/// A shift of a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shift {
    /// To the left.
    Left(u8),
    /// To the right.
    Right(u8),
}

/// What `CONNMARK` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnmarkMode {
    /// Sets the connection's mark to `(mark & !ctmask) ^ ctmark`.
    Set,
    /// Copies the packet's mark to the connection.
    Save,
    /// Copies the connection's mark to the packet.
    Restore,
    /// Not known.
    Other(u8),
}
