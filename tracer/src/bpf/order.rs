//! In which order a hook calls its base chains and tables, as the kernel's own list has it.

use fwtrace_abi::{
    HookList, LIST_OK, LIST_UNREAD, LISTED, LISTED_LEGACY, LISTED_NAT, LISTED_NFT, LISTED_TRACKING,
    Listed,
};

use super::load::{BpfError, Programs};
use crate::{
    eval::order::{Called, Tie},
    kernel::symbols::Symbols,
    netns::NetNs,
};

const PROGRAM: &str = "hook_list";
const MAP: &str = "HOOK_LIST";
// NFPROTO_* (include/uapi/linux/netfilter.h, v6.18).
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_ARP: u8 = 3;
const NFPROTO_NETDEV: u8 = 5;
const NFPROTO_BRIDGE: u8 = 7;
const NFPROTO_IPV6: u8 = 10;

/// The functions that call base chains and tables of a family. Others in its lists are not chains: flowtables, BPF programs, what other
/// parts of the kernel register.
struct Functions {
    /// Of nf_tables (net/netfilter/nft_chain_filter.c, nft_chain_route.c, nft_chain_nat.c, v6.18).
    nft: [Option<&'static str>; 5],
    /// Of ip_tables (net/ipv4/netfilter, net/ipv6/netfilter, v6.18).
    legacy: [Option<&'static str>; 2],
    /// That translate addresses, by hook (net/netfilter/nf_nat_proto.c, v6.18).
    nat: [Option<&'static str>; 5],
    /// That begin to track connections, by hook (net/netfilter/nf_conntrack_proto.c, v6.18).
    tracking: [Option<&'static str>; 5],
}

const IPV4: Functions = Functions {
    nft: [
        Some("nft_do_chain_ipv4"),
        Some("nft_do_chain_inet"),
        Some("nf_route_table_hook4"),
        Some("nf_route_table_inet"),
        Some("nft_nat_do_chain"),
    ],
    legacy: [Some("ipt_do_table"), Some("iptable_mangle_hook")],
    nat: [
        Some("nf_nat_ipv4_pre_routing"),
        Some("nf_nat_ipv4_local_in"),
        None,
        Some("nf_nat_ipv4_local_fn"),
        Some("nf_nat_ipv4_out"),
    ],
    tracking: [
        Some("ipv4_conntrack_in"),
        None,
        None,
        Some("ipv4_conntrack_local"),
        None,
    ],
};

const IPV6: Functions = Functions {
    nft: [
        Some("nft_do_chain_ipv6"),
        Some("nft_do_chain_inet"),
        Some("nf_route_table_hook6"),
        Some("nf_route_table_inet"),
        Some("nft_nat_do_chain"),
    ],
    legacy: [Some("ip6t_do_table"), Some("ip6table_mangle_hook")],
    nat: [
        Some("nf_nat_ipv6_in"),
        Some("nf_nat_ipv6_local_in"),
        None,
        Some("nf_nat_ipv6_local_fn"),
        Some("nf_nat_ipv6_out"),
    ],
    tracking: [
        Some("ipv6_conntrack_in"),
        None,
        None,
        Some("ipv6_conntrack_local"),
        None,
    ],
};

const ARP: Functions = Functions::of_chains([Some("nft_do_chain_arp"), None]);
const BRIDGE: Functions = Functions::of_chains([Some("nft_do_chain_bridge"), None]);
/// Ingress of family inet is in the list of the device, too.
const NETDEV: Functions = Functions::of_chains([
    Some("nft_do_chain_netdev"),
    Some("nft_do_chain_inet_ingress"),
]);

impl Functions {
    /// Of a family with nothing but filter chains of nf_tables.
    const fn of_chains([first, second]: [Option<&'static str>; 2]) -> Self {
        Self {
            nft: [first, second, None, None, None],
            legacy: [None; 2],
            nat: [None; 5],
            tracking: [None; 5],
        }
    }
}

/// The kernel functions whose addresses [`Order`] looks up.
pub fn functions() -> impl Iterator<Item = &'static str> {
    let families = [IPV4, IPV6, ARP, BRIDGE, NETDEV].into_iter();
    families.flat_map(|family| {
        let chains = family.nft.into_iter().chain(family.legacy);
        let others = family.nat.into_iter().chain(family.tracking);
        chains.chain(others).flatten()
    })
}

/// Reads the lists of hooks.
#[derive(Debug)]
pub struct Order {
    symbols: Symbols,
    loaded: bool,
    /// The kernel refuses the program.
    refused: bool,
}

impl Order {
    /// Loads nothing yet: most rulesets have no chains of one priority.
    pub fn new(symbols: Symbols) -> Self {
        Self {
            symbols,
            loaded: false,
            refused: false,
        }
    }

    /// What a hook of a namespace calls, if that is known and the ruleset is of this generation.
    fn read(
        &mut self,
        programs: &mut Programs,
        netns: &NetNs,
        tie: &Tie<'_>,
        generation: u32,
    ) -> Option<Vec<Called>> {
        if self.refused {
            return None;
        }
        if !self.loaded {
            if let Err(error) = programs.load_runnable(PROGRAM) {
                log::warn!("{error}: the order of chains with the same priority is not known");
                self.refused = true;
                return None;
            }
            self.loaded = true;
        }
        match self.list(programs, netns, tie) {
            Ok(list) => list
                .filter(|list| list.before == generation && list.after == generation)
                .map(|list| calls(&list)),
            Err(error) => {
                log::info!("the order of a hook's chains: {error}");
                None
            }
        }
    }

    fn list(
        &self,
        programs: &mut Programs,
        netns: &NetNs,
        tie: &Tie<'_>,
    ) -> Result<Option<HookList>, OrderError> {
        let family = match tie.pf {
            NFPROTO_IPV4 => IPV4,
            NFPROTO_IPV6 => IPV6,
            NFPROTO_ARP => ARP,
            NFPROTO_BRIDGE => BRIDGE,
            NFPROTO_NETDEV => NETDEV,
            _ => return Ok(None),
        };
        let start = |name: Option<_>| {
            let range = name.and_then(|name| self.symbols.range(name));
            range.map_or(0, |range| range.start)
        };
        let at = |names: [Option<_>; 5]| {
            let name = names.get(usize::from(tie.hook)).copied();
            start(name.flatten())
        };
        let request = HookList {
            netns: netns.inode(),
            pf: tie.pf.into(),
            hook: tie.hook.into(),
            device: tie.device.map_or(0, |device| device.index),
            status: LIST_UNREAD,
            before: 0,
            after: 0,
            count: 0,
            at: 0,
            pad: 0,
            nft: family.nft.map(start),
            legacy: family.legacy.map(start),
            nat: at(family.nat),
            tracking: at(family.tracking),
            node: 0,
            outer: 0,
            list: 0,
            outer_at: 0,
            listed: [Listed::default(); LISTED],
        };
        programs.set_elements(MAP, 0, &[request])?;
        // The program looks at the netns of the thread that runs it.
        netns.run(|| programs.run(PROGRAM, 0, None))??;
        let answer: HookList = programs.element(MAP, 0)?;
        Ok((answer.status == LIST_OK).then_some(answer))
    }
}

/// Why a list could not be read.
#[derive(Debug, thiserror::Error)]
enum OrderError {
    #[error(transparent)]
    Netns(#[from] crate::netns::Error),
    #[error(transparent)]
    Bpf(#[from] BpfError),
}

fn calls(list: &HookList) -> Vec<Called> {
    let listed = list.listed.iter().take(list.count as usize);
    listed
        .filter_map(|listed| match (listed.kind, listed.words) {
            (LISTED_NFT, [table, chain, ..]) => Some(Called::Nft { table, chain }),
            (LISTED_LEGACY, words) => {
                let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
                let name: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
                Some(Called::Legacy {
                    table: String::from_utf8_lossy(&name).into_owned(),
                })
            }
            (LISTED_TRACKING, _) => Some(Called::Tracking),
            (LISTED_NAT, _) => Some(Called::Translation),
            _ => None,
        })
        .collect()
}

/// The lists of one namespace's hooks, each to be read when it is needed.
pub struct Lists<'a> {
    /// What reads them.
    pub order: &'a mut Order,
    /// With what.
    pub programs: &'a mut Programs,
    /// Where.
    pub netns: &'a NetNs,
}

impl Lists<'_> {
    /// What a hook calls, if that is known and the ruleset is of this generation.
    pub fn read(&mut self, tie: &Tie<'_>, generation: u32) -> Option<Vec<Called>> {
        self.order.read(self.programs, self.netns, tie, generation)
    }
}

impl std::fmt::Debug for Lists<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lists").field("netns", self.netns).finish()
    }
}
