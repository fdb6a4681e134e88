//! Loads rulesets with nft, and lists them: what the kernel holds is the oracle.

use std::collections::HashMap;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::netns::Netns;

/// A rule as `nft -j -a` and `nft -s -a` list it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The table's family.
    pub family: String,
    /// Table.
    pub table: String,
    /// Chain.
    pub chain: String,
    /// Handle.
    pub handle: u64,
    /// 1-based position in its chain.
    pub number: u64,
    /// Its comment.
    pub comment: Option<String>,
    /// What its first counter has counted.
    pub packets: Option<u64>,
    /// The rule without its state (counters and the like), as nft prints it.
    pub text: String,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The table's family.
    pub family: String,
    /// Table.
    pub table: String,
    /// Name.
    pub name: String,
    /// Handle.
    pub handle: u64,
    /// Hook, of a base chain.
    pub hook: Option<String>,
    /// Policy, of a base chain.
    pub policy: Option<String>,
    /// How many rules it has.
    pub rules: u64,
}

/// All of a namespace's rules.
#[derive(Clone, Debug, Default)]
pub struct Ruleset {
    /// In the order of the listing.
    pub rules: Vec<Rule>,
    /// In the order of the listing.
    pub chains: Vec<Chain>,
}

/// Replaces the ruleset of a namespace, in one transaction.
///
/// # Errors
/// nft does not take it.
pub fn load(ns: &Netns, ruleset: &str) -> Result<()> {
    ns.command(&["nft", "-f", "-"], &format!("flush ruleset\n{ruleset}"))?;
    Ok(())
}

/// The listing as nft prints it.
///
/// # Errors
/// nft fails.
pub fn text(ns: &Netns) -> Result<String> {
    ns.command(&["nft", "-a", "list", "ruleset"], "")
}

/// The rules of a namespace as the kernel holds them.
///
/// # Errors
/// nft fails or prints what is not expected of it.
pub fn list(ns: &Netns) -> Result<Ruleset> {
    let json = ns.command(&["nft", "-j", "-a", "list", "ruleset"], "")?;
    let stateless = ns.command(&["nft", "-s", "-a", "list", "ruleset"], "")?;
    parse(&json, &texts(&stateless))
}

type TextKey = (String, String, String, u64);

/// Rule texts of a listing with handles, by family, table, chain and handle.
fn texts(listing: &str) -> HashMap<TextKey, String> {
    let mut found = HashMap::new();
    let (mut family, mut table, mut chain) = (String::new(), String::new(), String::new());
    for line in listing.lines() {
        let Some((text, handle)) = line.rsplit_once(" # handle ") else {
            continue;
        };
        let text = text.trim();
        let words: Vec<&str> = text.split(' ').collect();
        match words.as_slice() {
            ["table", of, name, "{"] => (family, table) = ((*of).to_owned(), (*name).to_owned()),
            ["chain", name, "{"] => chain = (*name).to_owned(),
            _ => {
                if let Ok(handle) = handle.trim().parse() {
                    let key = (family.clone(), table.clone(), chain.clone(), handle);
                    found.insert(key, text.to_owned());
                }
            }
        }
    }
    found
}

fn parse(json: &str, texts: &HashMap<TextKey, String>) -> Result<Ruleset> {
    let value: Value = serde_json::from_str(json)?;
    let objects = value["nftables"].as_array().context("no nftables array")?;
    let string = |v: &Value, key: &str| v[key].as_str().unwrap_or_default().to_owned();
    let mut set = Ruleset::default();
    for chain in objects.iter().filter_map(|o| o.get("chain")) {
        set.chains.push(Chain {
            family: string(chain, "family"),
            table: string(chain, "table"),
            name: string(chain, "name"),
            handle: chain["handle"].as_u64().context("chain without handle")?,
            hook: chain["hook"].as_str().map(str::to_owned),
            policy: chain["policy"].as_str().map(str::to_owned),
            rules: 0,
        });
    }
    for rule in objects.iter().filter_map(|o| o.get("rule")) {
        let (family, table) = (string(rule, "family"), string(rule, "table"));
        let name = string(rule, "chain");
        let chain = set
            .chains
            .iter_mut()
            .find(|c| c.family == family && c.table == table && c.name == name)
            .context("rule without chain")?;
        chain.rules += 1;
        let handle = rule["handle"].as_u64().context("rule without handle")?;
        let packets = rule["expr"]
            .as_array()
            .and_then(|e| e.iter().find_map(|e| e["counter"]["packets"].as_u64()));
        let key = (family.clone(), table.clone(), name.clone(), handle);
        set.rules.push(Rule {
            number: chain.rules,
            handle,
            comment: rule["comment"].as_str().map(str::to_owned),
            packets,
            text: texts.get(&key).cloned().unwrap_or_default(),
            family,
            table,
            chain: name,
        });
    }
    Ok(set)
}

impl Ruleset {
    /// The rule with this comment; rulesets of the tests have no two.
    pub fn commented(&self, comment: &str) -> Option<&Rule> {
        let mut found = self
            .rules
            .iter()
            .filter(|r| r.comment.as_deref() == Some(comment));
        let rule = found.next()?;
        found.next().is_none().then_some(rule)
    }

    /// The chain.
    pub fn chain(&self, table: &str, name: &str) -> Option<&Chain> {
        self.chains
            .iter()
            .find(|c| c.table == table && c.name == name)
    }
}
