//! Command line -> a validated plan. Nothing else sees raw flags.

mod args;
mod capture;
mod extcap;
mod plan;
mod push;
mod select;
mod services;
mod settings;
mod values;

use std::ffi::OsString;

use clap::Parser;

pub use plan::{
    Demo, Ebpf, Expressed, Features, Filter, Groups, Ladder, Live, Plan, PortMatch, PrefixMatch,
    Reasons, Replay, Rules, Side, Watch,
};
pub use values::{Ports, Prefix, Table};

/// The command line cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// clap's own words: wrong usage, or the help and version that were asked for.
    #[error("{0}")]
    Clap(#[from] clap::Error),
    /// Wrong usage that only the machine could tell: which value, why, and the next step.
    #[error("{0}")]
    Usage(String),
    /// This process may not look.
    #[error("{0}")]
    Permission(String),
    /// What the command line asks for takes something that this machine lacks.
    #[error("{0}")]
    Lacking(String),
}

impl Error {
    fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }
}

/// Reads the command line, the program's name first.
///
/// # Errors
/// It is wrong, names something that is not there, or asks for help or the version.
pub fn parse<I, T>(args: I) -> Result<Plan, Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let args = extcap::named(args.into_iter().map(Into::into));
    args::Args::try_parse_from(args)?.plan()
}

#[cfg(test)]
mod tests;
