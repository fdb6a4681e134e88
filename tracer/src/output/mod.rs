//! Sinks: text, JSON lines, the summary.

/// How events are shown.
#[derive(Clone, Debug)]
pub struct Options {
    /// Text or JSON lines.
    pub format: Format,
    /// When text is coloured.
    pub color: anstream::ColorChoice,
    /// How often -v was given.
    pub verbosity: u8,
    /// No talk on stderr.
    pub quiet: bool,
    /// Protocols and ICMP types as numbers.
    pub numeric: bool,
    /// Each line says where it happened.
    pub show_netns: bool,
}

/// Form of the events on stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One or two lines an event, for people.
    Text,
    /// One object a line.
    Json,
}
