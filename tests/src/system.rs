//! What a run may not change or leave behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::Path;

use crate::netns::Netns;

/// BPF objects: kind and id.
pub type BpfObjects = BTreeSet<(BpfKind, u32)>;

/// Kinds of BPF objects, and the command of bpf(2) that goes through their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BpfKind {
    /// Programs.
    Program,
    /// Maps.
    Map,
    /// Links.
    Link,
}

impl BpfKind {
    const ALL: [Self; 3] = [Self::Program, Self::Map, Self::Link];

    /// The key in /proc/PID/fdinfo.
    fn key(self) -> &'static str {
        match self {
            Self::Program => "prog_id:",
            Self::Map => "map_id:",
            Self::Link => "link_id:",
        }
    }

    /// BPF_PROG_GET_NEXT_ID and its siblings (include/uapi/linux/bpf.h, v6.18).
    fn next_id_command(self) -> i64 {
        match self {
            Self::Program => 11,
            Self::Map => 12,
            Self::Link => 31,
        }
    }
}

/// The BPF objects that a process holds open.
pub fn bpf_objects_of(pid: u32) -> BpfObjects {
    let mut found = BpfObjects::new();
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo"));
    for file in files.into_iter().flatten().flatten() {
        let text = fs::read_to_string(file.path()).unwrap_or_default();
        // A link's fdinfo names its program too; both are the process's.
        for line in text.lines() {
            for kind in BpfKind::ALL {
                if let Some(id) = line.strip_prefix(kind.key())
                    && let Ok(id) = id.trim().parse()
                {
                    found.insert((kind, id));
                }
            }
        }
    }
    found
}

/// The BPF objects of the machine.
pub fn bpf_objects() -> BpfObjects {
    let mut found = BpfObjects::new();
    for kind in BpfKind::ALL {
        let mut id = 0;
        while let Some(next) = next_bpf_id(kind, id) {
            found.insert((kind, next));
            id = next;
        }
    }
    found
}

#[expect(unsafe_code, reason = "bpf(2) has no safe wrapper here")]
fn next_bpf_id(kind: BpfKind, start: u32) -> Option<u32> {
    // union bpf_attr: start_id, next_id, open_flags.
    let mut attr = [start, 0, 0, 0];
    // SAFETY: the commands read 12 bytes of attr and write the second word.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            kind.next_id_command(),
            attr.as_mut_ptr(),
            size_of_val(&attr),
        )
    };
    (result == 0).then_some(attr[1])
}

/// Every sysctl under net/ that can be read in a namespace. `nf_conntrack_count` is a gauge, not a
/// setting.
pub fn sysctls(ns: &Netns) -> BTreeMap<String, Vec<u8>> {
    fn walk(dir: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, found);
            } else if !path.ends_with("nf_conntrack_count")
                && let Ok(content) = fs::read(&path)
            {
                found.insert(path.display().to_string(), content);
            }
        }
    }
    ns.run(|| {
        let mut found = BTreeMap::new();
        walk(Path::new("/proc/sys/net"), &mut found);
        found
    })
}

/// Names in /run/netns.
pub fn named_namespaces() -> BTreeSet<String> {
    let entries = fs::read_dir("/run/netns");
    entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Processes that have a thread in the namespace, by pid.
pub fn processes_in(ns: &Netns) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse() else {
            continue;
        };
        let tasks = fs::read_dir(process.path().join("task"));
        for task in tasks.into_iter().flatten().flatten() {
            if fs::metadata(task.path().join("ns/net")).is_ok_and(|m| m.st_ino() == ns.inode()) {
                found.insert(pid);
            }
        }
    }
    found
}

/// This process's name, as `ps -o comm` prints it.
pub fn own_comm() -> String {
    let comm = fs::read_to_string("/proc/self/comm").unwrap_or_default();
    comm.trim_end().to_owned()
}
