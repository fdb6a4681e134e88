//! Network namespaces: find, name, enter.
//!
//! A namespace's identity is the inode of its nsfs file, which is what the kernel's `net.ns.inum`
//! holds. Inodes are used again once a namespace is gone, so a name is checked before it is
//! believed a second time.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

use crate::event::NetnsRef;

/// Where `ip netns` keeps its namespaces.
const NAMED: &str = "/run/netns";
/// The calling thread's namespace.
const THREAD: &str = "/proc/thread-self/ns/net";
/// `ioctl_ns(2)`: which kind of namespace a file is (include/uapi/linux/nsfs.h, v6.18).
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
/// How long a name is believed, and an unknown inode not looked for again.
const BELIEVED: Duration = Duration::from_secs(1);

/// A namespace could not be found or entered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a name nor a process.
    #[error(
        "network namespace '{0}' not found: neither a name in {NAMED} nor the id of a process; `ip netns list` shows the names"
    )]
    NotFound(String),
    /// The file cannot be opened.
    #[error("network namespace {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{} is no network namespace", .0.display())]
    NotNetns(PathBuf),
    /// The kernel refused to switch.
    #[error("cannot enter network namespace {name}: {source}")]
    Enter {
        /// Its name, or its inode.
        name: String,
        /// Why; EPERM: CAP_SYS_ADMIN is missing.
        source: io::Error,
    },
}

/// A network namespace, held open: it lives at least as long as this.
#[derive(Clone, Debug)]
pub struct NetNs {
    inode: u32,
    name: Option<Arc<str>>,
    file: Arc<File>,
}

impl NetNs {
    /// The calling thread's namespace, with its name if `ip netns` knows it.
    ///
    /// # Errors
    /// /proc is not mounted.
    pub fn current() -> Result<Self, Error> {
        let mut ns = Self::from_path(Path::new(THREAD))?;
        ns.name = named()
            .find(|(_, path)| inode_of(path) == Some(ns.inode))
            .map(|(name, _)| name);
        Ok(ns)
    }

    /// The namespace that `spec` means: a path if it has a slash, else a name of `ip netns`, else
    /// the id of a process that lives in it.
    ///
    /// # Errors
    /// There is none, or it cannot be opened.
    pub fn find(spec: &str) -> Result<Self, Error> {
        if spec.contains('/') {
            let mut ns = Self::from_path(Path::new(spec))?;
            let known = named().find(|(_, path)| inode_of(path) == Some(ns.inode));
            ns.name = Some(known.map_or_else(|| spec.into(), |(name, _)| name));
            return Ok(ns);
        }
        let named = Path::new(NAMED).join(spec);
        // Names are single path components; "." and ".." are none.
        if !matches!(spec, "" | "." | "..") && named.exists() {
            let mut ns = Self::from_path(&named)?;
            ns.name = Some(spec.into());
            return Ok(ns);
        }
        match spec.parse() {
            Ok(pid) => Self::of_process(pid),
            Err(_) => Err(Error::NotFound(spec.to_owned())),
        }
    }

    /// The namespace of process `pid`.
    ///
    /// # Errors
    /// There is no such process, or it may not be looked at.
    pub fn of_process(pid: u32) -> Result<Self, Error> {
        let mut ns = match Self::from_path(&process_path(pid)) {
            Err(Error::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NotFound(pid.to_string()));
            }
            other => other?,
        };
        ns.name = named()
            .find(|(_, path)| inode_of(path) == Some(ns.inode))
            .map(|(name, _)| name)
            .or_else(|| Some(process_name(pid)));
        Ok(ns)
    }

    /// The namespace behind the nsfs file `path`, without a name.
    ///
    /// # Errors
    /// The file cannot be opened or is something else.
    pub fn from_path(path: &Path) -> Result<Self, Error> {
        let open = |source| Error::Open {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(open)?;
        if !is_netns(file.as_fd()) {
            return Err(Error::NotNetns(path.to_owned()));
        }
        let inode = file.metadata().map_err(open)?.ino();
        let inode = u32::try_from(inode).map_err(|_| Error::NotNetns(path.to_owned()))?;
        Ok(Self {
            inode,
            name: None,
            file: Arc::new(file),
        })
    }

    /// Every namespace that has a name or a process, each once, by inode. Those that vanish or
    /// may not be opened meanwhile are left out.
    pub fn all() -> Vec<Self> {
        let mut found: Vec<Self> = scan()
            .into_iter()
            .filter_map(|(inode, entry)| {
                let mut ns = Self::from_path(&entry.path).ok()?;
                ns.name = Some(entry.name);
                (ns.inode == inode).then_some(ns)
            })
            .collect();
        found.sort_unstable_by_key(|ns| ns.inode);
        found
    }

    /// Inode of the namespace's nsfs file.
    pub fn inode(&self) -> u32 {
        self.inode
    }

    /// Its name: `ip netns`'s, else PID/COMM of a process in it, else none.
    pub fn name(&self) -> Option<&Arc<str>> {
        self.name.as_ref()
    }

    /// How events refer to it.
    pub fn to_ref(&self) -> NetnsRef {
        NetnsRef {
            inode: self.inode,
            name: self.name.clone(),
        }
    }

    /// The open nsfs file.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Runs `f` inside the namespace, on a thread of its own; the caller's thread stays where it
    /// is. Sockets that `f` opens belong to the namespace wherever they go afterwards.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let refused = |source: io::Error| Error::Enter {
            name: self.to_string(),
            source,
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, || {
                    // Entering takes CAP_SYS_ADMIN even where one already is.
                    if inode_of(Path::new(THREAD)) != Some(self.inode) {
                        setns(self.as_fd(), CloneFlags::CLONE_NEWNET)?;
                    }
                    Ok::<T, nix::Error>(f())
                })
                .map_err(refused)?;
            match thread.join() {
                Ok(done) => done.map_err(|errno| refused(errno.into())),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Index of the interface called `name`; `None` if there is none.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn ifindex(&self, name: &str) -> Result<Option<u32>, Error> {
        self.run(|| nix::net::if_::if_nametoindex(name).ok())
    }

    /// Index and name of each interface.
    ///
    /// # Errors
    /// The namespace cannot be entered, or does not list them.
    pub fn interfaces(&self) -> Result<Vec<(u32, String)>, Error> {
        let listed = self.run(|| {
            let listed = nix::net::if_::if_nameindex()?;
            let named = listed
                .iter()
                .filter_map(|i| Some((i.index(), i.name().to_str().ok()?.to_owned())));
            Ok::<_, nix::Error>(named.collect())
        })?;
        listed.map_err(|errno| Error::Enter {
            name: self.to_string(),
            source: errno.into(),
        })
    }

    /// Name of the interface with that index; `None` if there is none.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn ifname(&self, index: u32) -> Result<Option<String>, Error> {
        self.run(|| {
            let name = nix::net::if_::if_indextoname(index).ok()?;
            name.into_string().ok()
        })
    }
}

impl std::fmt::Display for NetNs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.name {
            Some(name) => f.write_str(name),
            None => write!(f, "{}", self.inode),
        }
    }
}

/// Names of namespaces by inode, found when asked for: namespaces come and go during a run.
#[derive(Debug, Default)]
pub struct Names {
    known: HashMap<u32, Known>,
}

#[derive(Debug)]
struct Known {
    /// `None`: looked for and not found.
    entry: Option<Entry>,
    checked: Instant,
}

impl Names {
    /// The name of the namespace with that inode, if it has one now.
    pub fn name(&mut self, inode: u32) -> Option<Arc<str>> {
        self.find(inode).map(|entry| Arc::clone(&entry.name))
    }

    /// Opens the namespace with that inode, if it still has a name or a process.
    pub fn open(&mut self, inode: u32) -> Option<NetNs> {
        let entry = self.find(inode)?;
        let mut ns = NetNs::from_path(&entry.path).ok()?;
        ns.name = Some(Arc::clone(&entry.name));
        (ns.inode == inode).then_some(ns)
    }

    fn find(&mut self, inode: u32) -> Option<&Entry> {
        let checked = Instant::now();
        let believed = self.known.get_mut(&inode).is_some_and(|known| {
            if checked - known.checked < BELIEVED {
                return true;
            }
            known.checked = checked;
            let entry = known.entry.as_ref();
            entry.is_some_and(|entry| inode_of(&entry.path) == Some(inode))
        });
        if !believed {
            self.known
                .retain(|_, known| known.entry.is_none() && checked - known.checked < BELIEVED);
            for (inode, entry) in scan() {
                let entry = Some(entry);
                self.known.insert(inode, Known { entry, checked });
            }
            self.known.entry(inode).or_insert(Known {
                entry: None,
                checked,
            });
        }
        self.known.get(&inode)?.entry.as_ref()
    }
}

/// A name, and the nsfs file that it stands for.
#[derive(Clone, Debug)]
struct Entry {
    name: Arc<str>,
    path: PathBuf,
}

/// Every namespace that can be found: names first, then the process with the lowest id.
fn scan() -> HashMap<u32, Entry> {
    let mut found = HashMap::new();
    for (name, path) in named() {
        if let Some(inode) = inode_of(&path) {
            found.entry(inode).or_insert(Entry { name, path });
        }
    }
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    for pid in pids {
        let path = process_path(pid);
        if let Some(inode) = inode_of(&path) {
            found.entry(inode).or_insert_with(|| Entry {
                name: process_name(pid),
                path,
            });
        }
    }
    found
}

/// The namespaces of `ip netns`, in the order of their names.
fn named() -> impl Iterator<Item = (Arc<str>, PathBuf)> {
    let mut entries: Vec<_> = fs::read_dir(NAMED)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name: Arc<str> = entry.file_name().to_str()?.into();
            Some((name, entry.path()))
        })
        .collect();
    entries.sort_unstable();
    entries.into_iter()
}

/// PID/COMM, as netstat names processes.
fn process_name(pid: u32) -> Arc<str> {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("{pid}/{}", comm.trim_end()).into()
}

fn process_path(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}

/// The inode behind `path`; of any file.
fn inode_of(path: &Path) -> Option<u32> {
    fs::metadata(path).ok()?.ino().try_into().ok()
}

#[expect(unsafe_code, reason = "no safe wrapper of ioctl_ns(2)")]
fn is_netns(file: BorrowedFd<'_>) -> bool {
    // SAFETY: NS_GET_NSTYPE takes no argument and writes no memory; the descriptor is open.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    kind == libc::CLONE_NEWNET
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn current_is_the_one_of_this_process() {
        let current = NetNs::current().unwrap();
        let pid = std::process::id();
        assert_eq!(NetNs::of_process(pid).unwrap().inode(), current.inode());
        let by_spec = NetNs::find(&pid.to_string()).unwrap();
        assert_eq!(by_spec.inode(), current.inode());
        let by_path = NetNs::find("/proc/self/ns/net").unwrap();
        assert_eq!(by_path.inode(), current.inode());
        assert!(NetNs::all().iter().any(|ns| ns.inode() == current.inode()));
    }

    #[test]
    fn interfaces_have_index_and_name() {
        let current = NetNs::current().unwrap();
        let index = current.ifindex("lo").unwrap().unwrap();
        assert_eq!(current.ifname(index).unwrap().as_deref(), Some("lo"));
        let all = current.interfaces().unwrap();
        assert!(all.contains(&(index, "lo".to_owned())), "{all:?}");
        assert_eq!(current.ifindex("no-such-if0").unwrap(), None);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let err = NetNs::find("no-such-netns").unwrap_err();
        assert!(err.to_string().contains("'no-such-netns'"), "{err}");
        let err = NetNs::find("4294967294").unwrap_err();
        assert!(matches!(err, Error::NotFound(_)), "{err}");
        let err = NetNs::find("/proc/self/ns/mnt").unwrap_err();
        assert!(matches!(err, Error::NotNetns(_)), "{err}");
        let err = NetNs::find("/etc/passwd").unwrap_err();
        assert!(matches!(err, Error::NotNetns(_)), "{err}");
        let err = NetNs::find("..").unwrap_err();
        assert!(matches!(err, Error::NotFound(_)), "{err}");
    }

    #[test]
    fn unknown_inodes_have_no_name() {
        let mut names = Names::default();
        assert_eq!(names.name(1), None);
        assert!(names.open(1).is_none());
        let current = NetNs::current().unwrap();
        let opened = names.open(current.inode()).unwrap();
        assert_eq!(opened.inode(), current.inode());
    }
}
