//! Reads the tables of a network namespace by getsockopt: `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES`, and the same of ip6_tables.
//!
//! Asking for a table by its name makes the kernel create it where it is not there (`xt_find_table_lock()`, net/netfilter/x_tables.c,
//! v6.18). So only tables are asked for that `/proc/net/ip_tables_names` of the namespace lists, which does not create any; a table that
//! is listed stays until the namespace goes or its module is unloaded.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::PathBuf,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::{Family, Info, Table, blob};
use crate::netns::{self, NetNs};

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO` (include/uapi/linux/netfilter_ipv4/ip_tables.h, v6.18).
const GET_INFO: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES` and `IP6T_SO_GET_ENTRIES`.
const GET_ENTRIES: libc::c_int = 65;
/// `XT_TABLE_MAXNAMELEN`, with the NUL.
const MAXNAMELEN: usize = 32;
/// `sizeof(struct ipt_get_entries)`: the name, u32 size, and padding before the entries, which hold u64.
const ENTRIES_HEADER: usize = 40;
/// How often a table is read before it is given up for changing all the time.
const TRIES: usize = 32;
/// Room for the names of all tables; the kernel knows five.
const NAMES: usize = 4096;

/// Tables could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// The list of tables cannot be read.
    #[error("cannot list the tables of iptables-legacy: {}: {source}{}", path.display(), match source.kind() {
        // The file is root's, whatever else one may do.
        io::ErrorKind::PermissionDenied => "; it takes root, or CAP_DAC_READ_SEARCH: run it with sudo",
        _ => "",
    })]
    Names {
        /// The list.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No socket to ask on.
    #[error("cannot open a socket to read the tables of iptables-legacy: {0}")]
    Socket(#[source] io::Error),
    /// The kernel refused a table.
    #[error("cannot read table {table} of {}: {source}{}", tool(*family), advice(source))]
    Table {
        /// Of which.
        family: Family,
        /// The table.
        table: String,
        /// Why.
        source: io::Error,
    },
    /// The table changed each time between asking for its size and reading it.
    #[error("table {table} of {} was replaced {TRIES} times while it was read; try again when whoever does so is done", tool(*family))]
    Unsettled {
        /// Of which.
        family: Family,
        /// The table.
        table: String,
    },
}

fn tool(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables-legacy",
        Family::V6 => "ip6tables-legacy",
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "; it takes CAP_NET_ADMIN: run it with sudo",
        _ => "",
    }
}

/// A table as the kernel gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raw {
    /// IPv4 or IPv6.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// `IPT_SO_GET_INFO`.
    pub info: Info,
    /// All entries.
    pub blob: Vec<u8>,
}

impl Raw {
    /// Where each entry begins, in order: rules, policies, heads and tails of chains.
    pub fn offsets(&self) -> Vec<u32> {
        blob::offsets(self.family, &self.blob)
    }

    /// Makes a table of it.
    pub fn parse(&self) -> Table {
        blob::parse(self.family, &self.name, &self.info, &self.blob)
    }

    /// Whether nothing was replaced between the two readings: counters apart, they are equal.
    pub fn is_same(&self, other: &Self) -> bool {
        self.family == other.family
            && self.name == other.name
            && self.info == other.info
            && blob::is_same(self.family, &self.blob, &other.blob)
    }
}

/// Reads the tables of one network namespace, as often as asked.
///
/// Its files keep the namespace alive.
#[derive(Debug)]
pub struct Reader {
    netns: NetNs,
    v4: Option<Source>,
    v6: Option<Source>,
}

/// ip_tables or ip6_tables of a namespace.
#[derive(Debug)]
struct Source {
    family: Family,
    /// `ip_tables_names`.
    names: File,
    /// What that listed the last time: nothing else is asked for.
    listed: Vec<String>,
    /// Opened for the first table. Most namespaces have none, and there are many.
    socket: Option<OwnedFd>,
}

impl Reader {
    /// Opens what is needed to read the namespace's tables; nothing where neither ip_tables nor ip6_tables is loaded.
    ///
    /// # Errors
    /// See [`ReadError`]. Takes root (or CAP_DAC_READ_SEARCH) for the list of tables, CAP_NET_ADMIN for the tables, and CAP_SYS_ADMIN to
    /// enter a namespace.
    pub fn open(netns: &NetNs) -> Result<Self, ReadError> {
        let mut reader = Self {
            netns: netns.clone(),
            v4: None,
            v6: None,
        };
        reader.look()?;
        Ok(reader)
    }

    /// The tables that there are, in the order of the kernel's lists.
    ///
    /// # Errors
    /// The lists cannot be read.
    pub fn names(&mut self) -> Result<Vec<(Family, String)>, ReadError> {
        self.look()?;
        let netns = &self.netns;
        let mut all = Vec::new();
        for source in self.v4.iter_mut().chain(&mut self.v6) {
            source.list()?;
            if source.socket.is_none() && !source.listed.is_empty() {
                let socket = netns.run(|| source.open_socket())?;
                source.socket = Some(socket.map_err(ReadError::Socket)?);
            }
            let names = source.listed.iter().cloned();
            all.extend(names.map(|name| (source.family, name)));
        }
        Ok(all)
    }

    /// What the kernel says about a table without reading it.
    ///
    /// # Errors
    /// The kernel refuses it, or [`Reader::names`] did not list it the last time.
    pub fn info(&self, family: Family, name: &str) -> Result<Info, ReadError> {
        let source = self.source(family, name)?;
        source.info(name).map_err(refused(family, name))
    }

    /// Reads a table.
    ///
    /// # Errors
    /// The kernel refuses it, it never holds still, or [`Reader::names`] did not list it the last time.
    pub fn raw(&self, family: Family, name: &str) -> Result<Raw, ReadError> {
        let source = self.source(family, name)?;
        for _ in 0..TRIES {
            let info = source.info(name).map_err(refused(family, name))?;
            let blob = match source.entries(name, info.size) {
                // Its size is another one now.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => continue,
                other => other.map_err(refused(family, name))?,
            };
            // A replacement of the same size.
            if source.info(name).map_err(refused(family, name))? != info {
                continue;
            }
            return Ok(Raw {
                family,
                name: name.to_owned(),
                info,
                blob,
            });
        }
        Err(ReadError::Unsettled {
            family,
            table: name.to_owned(),
        })
    }

    /// Reads all tables.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(&mut self) -> Result<Vec<Raw>, ReadError> {
        let names = self.names()?;
        let raw = names.iter().map(|(family, name)| self.raw(*family, name));
        raw.collect()
    }

    /// Where to ask for a table: nowhere unless it is listed.
    fn source(&self, family: Family, name: &str) -> Result<&Source, ReadError> {
        let source = match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        let source = source.as_ref();
        let source = source.filter(|source| source.listed.iter().any(|listed| listed == name));
        source.ok_or_else(|| refused(family, name)(io::ErrorKind::NotFound.into()))
    }

    /// Opens what was not there yet. A module that is loaded appears in all namespaces at once, so most of the time a look at our own
    /// is enough.
    fn look(&mut self) -> Result<(), ReadError> {
        let wanted =
            |source: &Option<Source>, family| source.is_none() && names_path(family).exists();
        let v4 = wanted(&self.v4, Family::V4);
        let v6 = wanted(&self.v6, Family::V6);
        if !v4 && !v6 {
            return Ok(());
        }
        let open = |wanted: bool, family| {
            if wanted {
                Source::open(family)
            } else {
                Ok(None)
            }
        };
        let (opened4, opened6) = self
            .netns
            .run(|| (open(v4, Family::V4), open(v6, Family::V6)))?;
        self.v4 = opened4?.or(self.v4.take());
        self.v6 = opened6?.or(self.v6.take());
        Ok(())
    }
}

impl Source {
    /// Opens it in the calling thread's namespace; `None`: it is not loaded.
    fn open(family: Family) -> Result<Option<Self>, ReadError> {
        let path = names_path(family);
        let names = match File::open(&path) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ReadError::Names { path, source }),
        };
        Ok(Some(Self {
            family,
            names,
            listed: Vec::new(),
            socket: None,
        }))
    }

    /// A socket in the calling thread's namespace. Any kind will do, and this one takes no capability.
    fn open_socket(&self) -> io::Result<OwnedFd> {
        let domain = match self.family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        Ok(socket(
            domain,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?)
    }

    fn list(&mut self) -> Result<(), ReadError> {
        // From the start, which makes the kernel list anew.
        let mut bytes = [0; NAMES];
        let len = self.names.read_at(&mut bytes, 0);
        let len = len.map_err(|source| ReadError::Names {
            path: names_path(self.family),
            source,
        })?;
        let text = String::from_utf8_lossy(bytes.get(..len).unwrap_or_default());
        self.listed = text.lines().map(str::to_owned).collect();
        Ok(())
    }

    fn info(&self, name: &str) -> io::Result<Info> {
        let mut bytes = vec![0; Info::SIZE];
        put_name(&mut bytes, name)?;
        self.get(GET_INFO, &mut bytes)?;
        Info::decode(&bytes).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn entries(&self, name: &str, size: u32) -> io::Result<Vec<u8>> {
        let len = usize::try_from(size).map_err(io::Error::other)?;
        let mut bytes = vec![0; ENTRIES_HEADER.saturating_add(len)];
        put_name(&mut bytes, name)?;
        if let Some(field) = bytes.get_mut(MAXNAMELEN..MAXNAMELEN + 4) {
            field.copy_from_slice(&size.to_ne_bytes());
        }
        self.get(GET_ENTRIES, &mut bytes)?;
        bytes.drain(..ENTRIES_HEADER);
        Ok(bytes)
    }

    /// getsockopt, with what is in `bytes` as the question and the answer in its place.
    fn get(&self, option: libc::c_int, bytes: &mut [u8]) -> io::Result<()> {
        let level = match self.family {
            Family::V4 => libc::SOL_IP,
            Family::V6 => libc::SOL_IPV6,
        };
        let len = libc::socklen_t::try_from(bytes.len()).map_err(io::Error::other)?;
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        getsockopt(socket, level, option, bytes, len)
    }
}

#[expect(
    unsafe_code,
    reason = "no safe wrapper takes an option that is question and answer, of a size known at run time"
)]
fn getsockopt(
    socket: &OwnedFd,
    level: libc::c_int,
    option: libc::c_int,
    bytes: &mut [u8],
    mut len: libc::socklen_t,
) -> io::Result<()> {
    debug_assert_eq!(usize::try_from(len), Ok(bytes.len()));
    // SAFETY: the descriptor is open, and `bytes` is exclusively ours and `len` bytes long; the kernel reads and writes no more than that.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            bytes.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn put_name(bytes: &mut [u8], name: &str) -> io::Result<()> {
    let field = bytes.get_mut(..name.len());
    let field = field.filter(|_| name.len() < MAXNAMELEN);
    let field = field.ok_or(io::ErrorKind::InvalidInput)?;
    field.copy_from_slice(name.as_bytes());
    Ok(())
}

fn refused(family: Family, name: &str) -> impl FnOnce(io::Error) -> ReadError {
    move |source| ReadError::Table {
        family,
        table: name.to_owned(),
        source,
    }
}

/// Of the calling thread's namespace.
fn names_path(family: Family) -> PathBuf {
    match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    }
    .into()
}
