//! The netlink sockets of a network namespace, as `/proc/net/netlink` lists them: what they lost, and whose they are.

use std::fs;

/// `NETLINK_NETFILTER`.
pub const NETFILTER: u32 = 12;

/// One socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// `NETLINK_*`.
    pub protocol: u32,
    /// The socket's address within its protocol; often the id of the process, but nothing says so.
    pub port: u32,
    /// Messages that did not fit its receive buffer.
    pub drops: u64,
    /// Inode of the socket, as `/proc/PID/fd` shows it.
    pub inode: u64,
}

/// The process that has a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its name, at most 15 bytes.
    pub comm: String,
}

/// The sockets in the text of `/proc/net/netlink` (`netlink_seq_show`, net/netlink/af_netlink.c, v6.18); lines that are none are
/// left out.
pub fn parse(text: &str) -> Vec<Listed> {
    text.lines()
        .filter_map(|line| {
            // sk, protocol, port, groups, rmem, wmem, dump, locks, drops, inode
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let &[_, protocol, port, _, _, _, _, _, drops, inode] = words.as_slice() else {
                return None;
            };
            Some(Listed {
                protocol: protocol.parse().ok()?,
                port: port.parse().ok()?,
                drops: drops.parse().ok()?,
                inode: inode.parse().ok()?,
            })
        })
        .collect()
}

/// The first process that has the socket with this inode open; `None` if none is seen: it may be in another PID namespace.
pub fn holder(inode: u64) -> Option<Holder> {
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(files) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let holds = files.flatten().any(|file| {
            fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str())
        });
        if holds {
            let comm = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            let comm = comm.trim_end().to_owned();
            return Some(Holder { pid, comm });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::netlink::socket::{Protocol, Socket};

    /// From 6.18.44.
    const TEXT: &str = "\
sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode
0000000041655019 0   0          00000000 0        0        0     2        0        1337374 
000000008506647a 12  22902      00000000 0        0        0     2        17       1337445 
00000000a2b7a543 12  4294963235 00000100 0        0        0     2        0        1337381 
";

    #[test]
    fn sockets_of_the_kernel() {
        let sockets = parse(TEXT);
        assert_eq!(sockets.len(), 3);
        assert_eq!(
            sockets[1],
            Listed {
                protocol: NETFILTER,
                port: 22902,
                drops: 17,
                inode: 1_337_445
            }
        );
        assert_eq!(sockets[2].port, 4_294_963_235);
    }

    #[test]
    fn other_text_is_no_socket() {
        assert_eq!(parse(""), []);
        assert_eq!(parse("1 2 3\n\n- - - - - - - - - -\n"), []);
    }

    #[test]
    fn finds_the_holder() {
        let socket = Socket::open(Protocol::Netfilter, &[]).unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let link = link.to_str().unwrap();
        let inode = link["socket:[".len()..link.len() - 1].parse().unwrap();
        let listed = parse(&fs::read_to_string("/proc/thread-self/net/netlink").unwrap());
        assert!(
            listed
                .iter()
                .any(|l| l.inode == inode && l.protocol == NETFILTER)
        );
        let holder = holder(inode).unwrap();
        assert_eq!(holder.pid, std::process::id());
        let comm = fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(holder.comm, comm.trim_end());
        drop(socket);
    }
}
