//! `netlink::rtnl` against iproute2: what it sets up is what `ip` shows. Needs root.

use std::{os::fd::AsFd, process::Command, thread};

use fwtrace::netlink::rtnl::{Rtnl, RtnlError};
use nix::sched::{CloneFlags, setns, unshare};

/// Runs `work` on a thread of its own, in a new network namespace that ends with it.
fn in_new_netns<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
                work()
            })
            .join()
            .expect("the test's thread")
    })
}

fn ip(args: &[&str]) -> String {
    let output = Command::new("ip")
        .args(args)
        .output()
        .expect("ip is installed");
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {args:?}: {problem}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn links_addresses_and_routes() {
    in_new_netns(|| {
        let other =
            in_new_netns(|| std::fs::File::open("/proc/thread-self/ns/net")).expect("a namespace");
        let mut rtnl = Rtnl::open().expect("a socket");
        rtnl.up("lo").unwrap();
        rtnl.add_veth("v0", "v1", Some(other.as_fd())).unwrap();
        rtnl.add_veth("p0", "p1", None).unwrap();
        rtnl.rename("v0", "lan0").unwrap();
        rtnl.add_bridge("br0").unwrap();
        rtnl.set_master("p0", "br0").unwrap();
        rtnl.no_link_local("p1").unwrap();
        for link in ["lan0", "p0", "p1", "br0"] {
            rtnl.up(link).unwrap();
        }
        rtnl.add_address("lan0", [10, 9, 0, 1].into(), 24).unwrap();
        rtnl.add_address("lan0", "fd00::1".parse().unwrap(), 64)
            .unwrap();
        rtnl.add_default_route([10, 9, 0, 2].into()).unwrap();
        rtnl.add_route([10, 8, 0, 0].into(), 16, [10, 9, 0, 3].into())
            .unwrap();
        rtnl.add_default_route("fd00::2".parse().unwrap()).unwrap();
        rtnl.forward_ipv4("lan0").unwrap();

        let links = ip(&["-o", "-d", "link"]);
        let line = |name: &str| {
            links
                .lines()
                .find(|line| line.contains(name))
                .unwrap_or_default()
                .to_owned()
        };
        assert!(line(" lan0@").contains(" veth "), "{links}");
        assert!(line(" lan0@").contains(",UP"), "{links}");
        assert!(line(" p0@").contains("master br0"), "{links}");
        assert!(line(" lo:").contains(",UP"), "{links}");
        let addresses = ip(&["-o", "address", "show", "dev", "lan0"]);
        assert!(addresses.contains("inet 10.9.0.1/24 "), "{addresses}");
        assert!(
            addresses.contains("inet6 fd00::1/64 scope global nodad"),
            "{addresses}"
        );
        assert_eq!(ip(&["-6", "-o", "address", "show", "dev", "p1"]), "");
        assert!(line(" p1@").contains("addrgenmode none"), "{links}");
        let routes = ip(&["route"]);
        assert!(
            routes.contains("default via 10.9.0.2 dev lan0 proto static"),
            "{routes}"
        );
        assert!(
            routes.contains("10.8.0.0/16 via 10.9.0.3 dev lan0"),
            "{routes}"
        );
        let routes = ip(&["-6", "route"]);
        assert!(
            routes.contains("default via fd00::2 dev lan0 proto static"),
            "{routes}"
        );
        let forwarding = std::fs::read_to_string("/proc/sys/net/ipv4/conf/lan0/forwarding");
        assert_eq!(forwarding.expect("a sysctl").trim(), "1");

        let mut there = Rtnl::open_in(other.as_fd()).expect("a socket");
        let index = there.index("v1").unwrap();
        setns(&other, CloneFlags::CLONE_NEWNET).expect("the other namespace");
        assert!(ip(&["-o", "link"]).contains(&format!("{index}: v1@")));
    });
}

#[test]
fn a_refusal_says_what_was_tried() {
    in_new_netns(|| {
        let mut rtnl = Rtnl::open().expect("a socket");
        let error = rtnl.up("nowhere0").expect_err("there is no such link");
        assert!(
            matches!(&error, RtnlError::Refused { source, .. } if source.errno() == Some(nix::libc::ENODEV)),
            "{error}"
        );
        assert!(
            error.to_string().starts_with("set nowhere0 up: "),
            "{error}"
        );
        assert!(rtnl.index("nowhere0").is_err());
    });
}
