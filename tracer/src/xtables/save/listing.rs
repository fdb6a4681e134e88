//! Whole tables in the manner of iptables-save, with what that leaves out: each rule's number and handle stand behind it.

use std::fmt::Write;

use super::{legacy_rule, owner, rule};
use crate::ruleset::model::{self, Chain, Counters, Expr, Table};
use crate::ruleset::render::{self, Names};
use crate::xtables::{Family, legacy};

/// A chain as iptables-save declares it: `:INPUT DROP [12:3456]`; a user chain has no policy: `:SUB - [0:0]`.
pub fn chain_line(name: &str, policy: Option<&str>, counters: Option<Counters>) -> String {
    let Counters { packets, bytes } = counters.unwrap_or_default();
    format!(":{name} {} [{packets}:{bytes}]", policy.unwrap_or("-"))
}

/// A table of iptables-nft: the built-in chains in the order of their hooks, then the others by name. `None` if it has more than chains and
/// rules (sets, objects, flowtables, flags), or if its family is not iptables'.
pub fn table(table: &Table, options: &render::Options<'_>) -> Option<String> {
    if !matches!(table.family, model::Family::Ip | model::Family::Ip6) {
        return None;
    }
    let more = !table.sets.is_empty() || !table.objects.is_empty() || !table.flowtables.is_empty();
    let bound = |chain: &Chain| chain.flags & Chain::BINDING != 0;
    if more || table.flags != 0 || table.comment.is_some() || table.chains.iter().any(bound) {
        return None;
    }
    let mut chains: Vec<&Chain> = table.chains.iter().collect();
    chains.sort_by_key(|chain| {
        (
            chain.base.as_ref().map_or(u32::MAX, |b| b.hook),
            &chain.name,
        )
    });
    let mut text = format!(
        "# {} table {}, of iptables-nft\n*{}\n",
        table.family, table.name, table.name
    );
    for chain in &chains {
        let base = chain.base.as_ref();
        let policy = base.map(|base| match base.policy {
            0 => "DROP",
            _ => "ACCEPT",
        });
        let counters = base.and_then(|base| base.counters);
        let counters = counters.filter(|_| !options.stateless);
        text += &chain_line(&chain.name, policy, counters);
        if !owner::knows(table, chain)
            && let Some(declaration) = render::chain_declaration(table.family, chain)
        {
            text += &format!(" # not iptables': {declaration}");
        }
        text.push('\n');
    }
    for chain in chains {
        for item in &chain.rules {
            match rule(table, chain, item, options.names) {
                Some(line) => {
                    push_counters(&mut text, counters(item), options.stateless);
                    text += &line;
                }
                None => {
                    let nft = render::rule(table, item, options);
                    text += &format!("# -A {} in nft's words: {nft}", chain.name);
                }
            }
            text += &format!(" # rule {} (handle {})\n", item.number, item.handle);
        }
    }
    Some(text + "COMMIT\n")
}

/// A table of iptables-legacy, likewise; `wanted` says which chains, by name. Its rules have no handles.
pub fn legacy_table(
    table: &legacy::Table,
    names: &Names,
    stateless: bool,
    wanted: impl Fn(&str) -> bool,
) -> String {
    let family = match table.family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    let mut text = format!(
        "# {family} table {}, of iptables-legacy\n*{}\n",
        table.name, table.name
    );
    let chains = || table.chains.iter().filter(|chain| wanted(&chain.name));
    for chain in chains() {
        let base = chain.base.as_ref();
        let policy = base.map(|base| match base.policy {
            legacy::Jump::Drop => "DROP",
            legacy::Jump::Queue => "QUEUE",
            legacy::Jump::Return => "RETURN",
            _ => "ACCEPT",
        });
        let counters = base.map(|base| base.counters).filter(|_| !stateless);
        text += &chain_line(&chain.name, policy, counters);
        text.push('\n');
    }
    for chain in chains() {
        for item in &chain.rules {
            push_counters(&mut text, Some(item.counters), stateless);
            text += &legacy_rule(table, chain, item, names);
            text += &format!(" # rule {}\n", item.number);
        }
    }
    text + "COMMIT\n"
}

/// `[12:3456] ` before a rule.
fn push_counters(text: &mut String, counters: Option<Counters>, stateless: bool) {
    if !stateless {
        let Counters { packets, bytes } = counters.unwrap_or_default();
        let _ = write!(text, "[{packets}:{bytes}] ");
    }
}

fn counters(rule: &model::Rule) -> Option<Counters> {
    rule.exprs.iter().find_map(|expr| match expr {
        Expr::Counter(counters) => Some(*counters),
        _ => None,
    })
}
