//! The logger of a network namespace: where ip_tables' TRACE goes, and why conntrack calls packets invalid.
//!
//! ip_tables reports a packet with the trace bit to the logger that `/proc/sys/net/netfilter/nf_log/FAMILY` names, and only nfnetlink_log
//! gives it to user space. So does conntrack with a packet that it calls invalid, if `nf_conntrack_log_invalid` asks for that. So
//! `--trace` sets both for the time of the run, and puts the former values back. So that they are put back even
//! after a crash, it is noted in a file first, `nf_log.INODE` in `$RUNTIME_DIRECTORY` or /run/fwtrace, which the process that wrote it
//! keeps locked: a note that nobody has locked is one of a process that came to no good end, and the next one puts the logger back.
//!
//! The logger is never unset by NFLOG's own PF_UNBIND: that leaves none, not the former one.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use super::announce;
use crate::{
    netns::{self, NetNs},
    xtables::Family,
};

/// A sysctl for each family.
const LOGGERS: &str = "/proc/sys/net/netfilter/nf_log";
/// The protocol of which conntrack logs invalid packets: 0 none, 255 all (net/netfilter/nf_conntrack_proto.c, v6.18).
const LOG_INVALID: &str = "/proc/sys/net/netfilter/nf_conntrack_log_invalid";
const ALL: &str = "255";
/// The logger that hands packets to user space.
const NFNETLINK_LOG: &str = "nfnetlink_log";
/// Where notes are kept unless the service manager says otherwise.
const DIRECTORY: &str = "/run/fwtrace";
/// What notes' names begin with.
const PREFIX: &str = "nf_log.";

/// The logger could not be set, read or put back.
#[derive(Debug, thiserror::Error)]
pub enum LoggerError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// A file of /proc or the note.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> LoggerError {
    move |source| LoggerError::File {
        path: path.to_owned(),
        source,
    }
}

/// What is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setting {
    /// The logger of a family.
    Logger(Family),
    /// Which packets conntrack logs that it calls invalid.
    LogInvalid,
}

impl Setting {
    /// The sysctl, as the calling thread's namespace has it.
    fn path(self) -> PathBuf {
        match self {
            Self::Logger(_) => Path::new(LOGGERS).join(self.name()),
            Self::LogInvalid => LOG_INVALID.into(),
        }
    }

    /// What it is set to.
    fn value(self) -> &'static str {
        match self {
            Self::Logger(_) => NFNETLINK_LOG,
            Self::LogInvalid => ALL,
        }
    }

    /// Its name in notes; of a logger that of its sysctl, `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    fn name(self) -> &'static str {
        match self {
            Self::Logger(Family::V4) => "2",
            Self::Logger(Family::V6) => "10",
            Self::LogInvalid => "log_invalid",
        }
    }

    fn named(name: &str) -> Option<Self> {
        let all = [
            Self::Logger(Family::V4),
            Self::Logger(Family::V6),
            Self::LogInvalid,
        ];
        all.into_iter().find(|setting| setting.name() == name)
    }

    fn get(self, netns: &NetNs) -> Result<String, LoggerError> {
        let path = self.path();
        let text = netns.run(|| fs::read_to_string(&path))?;
        Ok(text.map_err(file_error(&path))?.trim_end().to_owned())
    }

    fn set(self, netns: &NetNs, value: &str) -> Result<(), LoggerError> {
        let path = self.path();
        let written = netns.run(|| fs::write(&path, value))?;
        written.map_err(file_error(&path))
    }
}

/// Whether conntrack can say in this namespace why packets are invalid: not where it is not there.
///
/// # Errors
/// The namespace cannot be entered.
pub fn can_log_invalid(netns: &NetNs) -> Result<bool, netns::Error> {
    netns.run(|| Path::new(LOG_INVALID).exists())
}

/// The loggers of a namespace, set to nfnetlink_log until this is dropped, and what conntrack logs, set to all.
#[derive(Debug)]
pub struct Switched {
    netns: NetNs,
    former: Vec<(Setting, String)>,
    /// None if there was nothing to set.
    note: Option<Note>,
}

impl Switched {
    /// Sets the loggers of these families, and, with `invalid`, that conntrack logs all packets that it calls invalid: announced and
    /// noted before; what is set already is left as it is.
    ///
    /// # Errors
    /// See [`LoggerError`]; nothing is changed then.
    pub fn set(netns: &NetNs, families: &[Family], invalid: bool) -> Result<Self, LoggerError> {
        let mut former = Vec::new();
        // The loggers first, or what conntrack logs would go to the system's log for a moment.
        let loggers = families.iter().copied().map(Setting::Logger);
        for setting in loggers.chain(invalid.then_some(Setting::LogInvalid)) {
            let value = setting.get(netns)?;
            if value != setting.value() {
                former.push((setting, value));
            }
        }
        let note = match former.is_empty() {
            true => None,
            false => Some(Note::write(&directory(), netns.inode(), &former)?),
        };
        let mut this = Self {
            netns: netns.clone(),
            former: Vec::new(),
            note,
        };
        for (setting, value) in former {
            announce(&format!(
                "--trace: sets {} of network namespace {netns} from {value} to {} until the end",
                setting.path().display(),
                setting.value()
            ));
            // Dropped on an error, it puts back what it has set.
            setting.set(netns, setting.value())?;
            this.former.push((setting, value));
        }
        Ok(this)
    }
}

impl Drop for Switched {
    fn drop(&mut self) {
        for (setting, value) in self.former.iter().rev() {
            let path = setting.path();
            announce(&format!(
                "--trace: puts {} of network namespace {} back to {value}",
                path.display(),
                self.netns
            ));
            if let Err(error) = setting.set(&self.netns, value) {
                announce(&format!(
                    "--trace: cannot put it back: {error}; write {value} to it yourself"
                ));
                // The next run tries it again.
                if let Some(note) = &mut self.note {
                    note.keep = true;
                }
            }
        }
    }
}

/// A note of what to put back, locked as long as its process lives.
#[derive(Debug)]
struct Note {
    path: PathBuf,
    keep: bool,
    _file: Flock<File>,
}

impl Note {
    fn write(
        directory: &Path,
        inode: u32,
        former: &[(Setting, String)],
    ) -> Result<Self, LoggerError> {
        let path = directory.join(format!("{PREFIX}{inode}"));
        // Under its name it is locked and whole from the first moment, or it would be taken for a left one.
        let draft = directory.join(format!(".{PREFIX}{inode}.{}", std::process::id()));
        fs::create_dir_all(directory).map_err(file_error(directory))?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)
            .map_err(file_error(&draft))?;
        let mut file = lock(file).map_err(file_error(&draft))?;
        let noted = Noted {
            boot: boot_id(),
            inode,
            former: former.to_vec(),
        };
        let written = file
            .write_all(noted.to_string().as_bytes())
            .and_then(|()| fs::hard_link(&draft, &path));
        let _ = fs::remove_file(&draft);
        written.map_err(file_error(&path))?;
        Ok(Self {
            path,
            keep: false,
            _file: file,
        })
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        if !self.keep {
            // While it is still locked, so that nobody takes it for a left one.
            remove(&self.path);
        }
    }
}

/// Removes a note, and the directory if it was made for notes and is empty now.
fn remove(note: &Path) {
    let _ = fs::remove_file(note);
    if note.parent() == Some(Path::new(DIRECTORY)) {
        let _ = fs::remove_dir(DIRECTORY);
    }
}

/// Locks it for this process; an error if another has it locked.
fn lock(file: File) -> io::Result<Flock<File>> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into())
}

/// What a note says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Noted {
    /// Of the boot that it was written in; inodes of namespaces mean nothing in another.
    boot: String,
    /// The namespace's.
    inode: u32,
    /// What to put back.
    former: Vec<(Setting, String)>,
}

impl std::fmt::Display for Noted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "boot {}\nnetns {}", self.boot, self.inode)?;
        for (setting, value) in &self.former {
            writeln!(f, "{} {value}", setting.name())?;
        }
        Ok(())
    }
}

impl Noted {
    /// `None`: it is no whole note.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().map(|line| line.split_once(' '));
        let mut value = |wanted: &str| {
            let (key, value) = lines.next()??;
            (key == wanted).then_some(value)
        };
        let boot = value("boot")?.to_owned();
        let inode = value("netns")?.parse().ok()?;
        let former: Option<Vec<(Setting, String)>> = lines
            .map(|line| {
                let (name, value) = line?;
                Some((Setting::named(name)?, value.to_owned()))
            })
            .collect();
        Some(Self {
            boot,
            inode,
            former: former?,
        })
    }
}

/// Puts back what runs before this one have left, and says so.
pub fn recover() {
    let given = directory();
    recover_in(&given);
    if given != Path::new(DIRECTORY) {
        recover_in(Path::new(DIRECTORY));
    }
}

fn recover_in(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    let boot = boot_id();
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !name.as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        let path = entry.path();
        // Whoever has it locked is alive and puts back by itself.
        let Some(mut file) = File::open(&path).ok().and_then(|file| lock(file).ok()) else {
            continue;
        };
        let mut text = String::new();
        let noted = match file.read_to_string(&mut text) {
            Ok(_) => Noted::parse(&text),
            Err(_) => None,
        };
        let done = match noted {
            Some(noted) if noted.boot == boot => put_back(&noted),
            // The machine was started anew since: nothing of it is left. A note that is not whole was never acted upon.
            _ => Ok(()),
        };
        match done {
            Ok(()) => remove(&path),
            Err(error) => announce(&format!(
                "--trace: cannot put back what {} notes: {error}",
                path.display()
            )),
        }
    }
}

fn put_back(noted: &Noted) -> Result<(), LoggerError> {
    // Gone with the namespace, if there is none.
    let Some(netns) = netns::Names::default().open(noted.inode) else {
        return Ok(());
    };
    for (setting, value) in noted.former.iter().rev() {
        // Somebody else may have set it since.
        if setting.get(&netns)? != setting.value() {
            continue;
        }
        announce(&format!(
            "--trace: an earlier run did not end well; puts {} of network namespace {netns} back to {value}",
            setting.path().display()
        ));
        setting.set(&netns, value)?;
    }
    Ok(())
}

fn directory() -> PathBuf {
    // Several are separated by colons (systemd.exec(5)).
    let given = std::env::var_os("RUNTIME_DIRECTORY");
    let first = given
        .as_deref()
        .and_then(OsStr::to_str)
        .and_then(|all| all.split(':').next())
        .filter(|first| first.starts_with('/'));
    first.unwrap_or(DIRECTORY).into()
}

fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted() -> Noted {
        Noted {
            boot: boot_id(),
            inode: 7,
            former: vec![
                (Setting::Logger(Family::V4), "nf_log_ipv4".to_owned()),
                (Setting::Logger(Family::V6), "NONE".to_owned()),
                (Setting::LogInvalid, "6".to_owned()),
            ],
        }
    }

    #[test]
    fn a_note_survives_and_half_a_note_is_none() {
        let text = noted().to_string();
        assert_eq!(Noted::parse(&text), Some(noted()));
        assert!(
            text.contains("\n2 nf_log_ipv4\n10 NONE\nlog_invalid 6\n"),
            "{text}"
        );
        for text in [
            "",
            "boot x\n",
            "boot x\nnetns y\n",
            "netns 7\nboot x\n",
            "boot x\nnetns 7\n3 a\n",
            "boot x\nnetns 7\n2\n",
        ] {
            assert_eq!(Noted::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_note_is_locked_while_its_writer_lives_and_goes_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let former = noted().former;
        let note = Note::write(directory.path(), 7, &former).unwrap();
        let path = directory.path().join("nf_log.7");
        assert_eq!(
            Noted::parse(&fs::read_to_string(&path).unwrap()),
            Some(noted())
        );
        assert!(lock(File::open(&path).unwrap()).is_err());
        // Another run of fwtrace has it.
        assert!(Note::write(directory.path(), 7, &former).is_err());
        drop(note);
        assert!(!path.exists());
    }
}
