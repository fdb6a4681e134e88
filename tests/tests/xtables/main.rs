//! Matches and targets of xtables as fwtrace decodes and prints them, against iptables-save of both engines, over the corpus in
//! `data/xtables`. Needs root, iptables, ipset and nfacct.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod infos;
mod old;

use std::{collections::BTreeSet, fs, path::Path};

use e2e::netns::Netns;
use fwtrace::{
    netlink::{
        ipset,
        nftables::read_ruleset,
        socket::{Protocol, Socket},
    },
    netns::NetNs,
    ruleset::{
        model::{Expr, Family as TableFamily, Ruleset},
        render::Names,
    },
    xtables::{
        Family,
        legacy::{Jump, Table, read::Reader},
        matches::Match,
        save,
        targets::Target,
    },
};

/// A file of the corpus.
struct Corpus {
    family: Family,
    table: String,
    /// As iptables-restore takes it.
    text: String,
    /// The rules in the order of their chain's name, then of the file: the order of iptables-save, chains apart.
    rules: Vec<String>,
}

impl Corpus {
    fn all() -> Vec<Self> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/xtables");
        let mut files: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                let name = path.file_name().unwrap().to_str().unwrap();
                name.starts_with("ipv") && name.ends_with(".rules")
            })
            .collect();
        files.sort();
        files.iter().map(|file| Self::read(file)).collect()
    }

    fn read(file: &Path) -> Self {
        let stem = file.file_stem().unwrap().to_str().unwrap();
        let (family, table) = stem.split_once('-').unwrap();
        let lines = fs::read_to_string(file).unwrap();
        Self {
            family: match family {
                "ipv4" => Family::V4,
                "ipv6" => Family::V6,
                other => panic!("{other} in {}", file.display()),
            },
            table: table.to_owned(),
            text: format!("*{table}\n{lines}COMMIT\n"),
            rules: lines
                .lines()
                .filter(|line| line.starts_with("-A "))
                .map(str::to_owned)
                .collect(),
        }
    }

    /// `iptables-nft`, `ip6tables-legacy`, ...
    fn tool(&self, engine: &str) -> String {
        match self.family {
            Family::V4 => format!("iptables-{engine}"),
            Family::V6 => format!("ip6tables-{engine}"),
        }
    }

    fn rules_of<'a>(&'a self, chain: &'a str) -> impl Iterator<Item = &'a String> {
        let prefix = format!("-A {chain} ");
        self.rules
            .iter()
            .filter(move |rule| format!("{rule} ").starts_with(&prefix))
    }
}

/// A namespace with the corpus in it, the sets and counters that its rules name, and what iptables-save says.
struct Loaded {
    netns: Netns,
    corpus: Vec<Corpus>,
    /// By index.
    sets: Vec<(u16, String)>,
    names: Names,
}

impl Loaded {
    fn new(engine: &str) -> Self {
        let [netns] = Netns::create().expect("needs root");
        let sets = "create addresses hash:net counters timeout 0\n\
                    create pairs hash:ip,port\n\
                    create triples hash:ip,port,ip\n\
                    create addresses6 hash:net family inet6\n\
                    create skb hash:ip skbinfo\n";
        netns.command(&["ipset", "restore"], sets).unwrap();
        for object in ["http-traffic", "two words"] {
            netns.command(&["nfacct", "add", object], "").unwrap();
        }
        let mut corpus = Corpus::all();
        for file in &mut corpus {
            let tool = file.tool(engine);
            netns
                .command(&[&format!("{tool}-restore")], &file.text)
                .unwrap();
            let saved = netns
                .command(&[&format!("{tool}-save"), "-t", &file.table], "")
                .unwrap();
            let saved: Vec<_> = saved
                .lines()
                .filter(|line| line.starts_with("-A "))
                .map(str::to_owned)
                .collect();
            let lines = |rules: &[String]| {
                let mut rules = rules.to_vec();
                rules.sort();
                rules.join("\n")
            };
            assert_eq!(
                lines(&saved),
                lines(&file.rules),
                "the corpus of {} is not as {tool}-save prints it",
                file.table
            );
            file.rules = saved;
        }
        let sets = netns.run(|| {
            let mut socket = Socket::open(Protocol::Netfilter, &[]).unwrap();
            ipset::read_sets(&mut socket).unwrap()
        });
        let sets = sets.into_iter().map(|set| (set.index.unwrap(), set.name));
        Self {
            netns,
            corpus,
            names: Names::system().with_ip_sets(sets.clone()),
            sets: sets.collect(),
        }
    }

    fn text(&self, matches: &[Match]) -> String {
        let mut text = String::new();
        for item in matches {
            item.save(&self.names, &mut text);
        }
        text
    }
}

#[test]
fn the_corpus_is_large_enough() {
    let rules: usize = Corpus::all().iter().map(|file| file.rules.len()).sum();
    assert!(rules >= 350, "{rules} rules");
}

#[test]
fn rules_of_legacy_tables_are_printed_as_iptables_save_does() {
    let loaded = Loaded::new("legacy");
    let mut reader = Reader::open(&NetNs::find(loaded.netns.name()).unwrap()).unwrap();
    let tables: Vec<Table> = reader
        .read()
        .unwrap()
        .iter()
        .map(|raw| raw.parse())
        .collect();
    let mut names = BTreeSet::new();
    for file in &loaded.corpus {
        let table = tables
            .iter()
            .find(|table| table.family == file.family && table.name == file.table)
            .unwrap();
        for chain in &table.chains {
            let saved: Vec<_> = file.rules_of(&chain.name).collect();
            assert_eq!(chain.rules.len(), saved.len(), "{}", chain.name);
            for (rule, saved) in chain.rules.iter().zip(saved) {
                let line = save::legacy_rule(table, chain, rule, &loaded.names);
                assert_eq!(line, *saved);
                for item in &rule.matches {
                    names.insert(known_match(item, saved));
                }
                if let Jump::Target(target) = &rule.jump {
                    names.insert(known_target(target, saved));
                }
            }
        }
    }
    assert_eq!(names.into_iter().collect::<Vec<_>>().join(" "), COVERED);
}

#[test]
fn rules_of_iptables_nft_are_printed_as_iptables_save_does() {
    let loaded = Loaded::new("nft");
    let ruleset: Ruleset = loaded.netns.run(|| {
        let mut socket = Socket::open(Protocol::Netfilter, &[]).unwrap();
        read_ruleset(&mut socket).unwrap()
    });
    let mut decoded = 0;
    for file in &loaded.corpus {
        let family = match file.family {
            Family::V4 => TableFamily::Ip,
            Family::V6 => TableFamily::Ip6,
        };
        let table = ruleset
            .tables
            .iter()
            .find(|table| table.family == family && table.name == file.table)
            .unwrap();
        for chain in &table.chains {
            let saved: Vec<_> = file.rules_of(&chain.name).collect();
            assert_eq!(chain.rules.len(), saved.len(), "{}", chain.name);
            for (rule, saved) in chain.rules.iter().zip(saved) {
                let line = save::rule(table, chain, rule, &loaded.names);
                assert_eq!(line.as_ref(), Some(saved), "{:?}", rule.exprs);
                for expr in &rule.exprs {
                    match expr {
                        Expr::Match { name, rev, info } => {
                            let rev = (*rev).try_into().unwrap();
                            known_match(&Match::decode(name, rev, info, file.family), saved);
                        }
                        Expr::Target { name, rev, info } => {
                            let rev = (*rev).try_into().unwrap();
                            known_target(&Target::decode(name, rev, info, file.family), saved);
                        }
                        _ => continue,
                    }
                    decoded += 1;
                }
            }
        }
    }
    assert!(decoded >= 300, "{decoded} matches and targets");
}

fn known_match(item: &Match, saved: &str) -> String {
    assert!(!matches!(item, Match::Unknown { .. }), "{item:?}\n{saved}");
    item.name().to_owned()
}

fn known_target(item: &Target, saved: &str) -> String {
    assert!(!matches!(item, Target::Unknown { .. }), "{item:?}\n{saved}");
    item.name().to_owned()
}

/// What the corpus has: every extension that iptables 1.8.9 has in common with fwtrace, but `LED`, `SECMARK` and `CONNSECMARK`, which take
/// hardware or SELinux.
const COVERED: &str = "AUDIT CHECKSUM CLASSIFY CONNMARK CT DNAT DNPT DSCP ECN HL HMARK IDLETIMER LOG MARK MASQUERADE NETMAP NFLOG \
    NFQUEUE NOTRACK RATEEST REDIRECT REJECT SET SNAT SNPT SYNPROXY TCPMSS TCPOPTSTRIP TEE TOS TPROXY TRACE TTL \
    addrtype ah bpf cgroup cluster comment connbytes connlabel connlimit connmark conntrack cpu dccp devgroup dscp \
    dst ecn esp eui64 frag hashlimit hbh helper hl icmp icmp6 ipcomp iprange ipv6header length limit mac mark mh \
    multiport nfacct osf owner physdev pkttype policy quota rateest realm recent rpfilter rt sctp set socket srh \
    state statistic string tcp tcpmss time tos ttl u32 udp";
