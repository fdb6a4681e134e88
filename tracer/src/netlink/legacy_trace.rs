//! What ip_tables says of a packet whose nftrace bit is set: a log prefix for every rule that it passes.
//!
//! `TRACE: filter:INPUT:rule:2 ` comes with the packet over NFLOG group 0 where nfnetlink_log is the family's logger
//! (`trace_packet`, net/ipv4/netfilter/ip_tables.c, v6.18).

/// What the kernel calls the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A rule.
    Rule,
    /// The end of a built-in chain, or a rule without matches in it.
    Policy,
    /// The end of another chain, or a rule without matches in it.
    Return,
}

/// One line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// The table.
    pub table: &'a str,
    /// The chain.
    pub chain: &'a str,
    /// What the kernel calls the entry, see [`Line::rule`].
    pub kind: Kind,
    /// The entry's number in its chain, from 1; the end of the chain is counted as well.
    pub number: u32,
}

impl<'a> Line<'a> {
    /// Reads a prefix; `None` for what is none of ip_tables' TRACE.
    pub fn parse(prefix: &'a str) -> Option<Self> {
        let line = prefix.strip_prefix("TRACE: ")?.trim_end();
        let (table, rest) = line.split_once(':')?;
        // A chain's name may have colons in it.
        let (rest, number) = rest.rsplit_once(':')?;
        let (chain, kind) = rest.rsplit_once(':')?;
        let number = number.parse().ok().filter(|number| *number > 0)?;
        let kind = match kind {
            "rule" => Kind::Rule,
            "policy" => Kind::Policy,
            "return" => Kind::Return,
            _ => return None,
        };
        Some(Self {
            table,
            chain,
            kind,
            number,
        })
    }

    /// Number of the rule, in a chain of `rules` rules; `None` at the chain's end.
    ///
    /// The kernel tells the end of a chain by its entry having no matches, and so takes a rule such as `-A INPUT -j DROP` for one:
    /// only the entry behind the last rule is the end.
    pub fn rule(&self, rules: u32) -> Option<u32> {
        (self.kind == Kind::Rule || self.number <= rules).then_some(self.number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_of_the_kernel() {
        let line = |table, chain, kind, number| {
            Some(Line {
                table,
                chain,
                kind,
                number,
            })
        };
        assert_eq!(
            Line::parse("TRACE: filter:INPUT:rule:2 "),
            line("filter", "INPUT", Kind::Rule, 2)
        );
        assert_eq!(
            Line::parse("TRACE: raw:PREROUTING:policy:1 "),
            line("raw", "PREROUTING", Kind::Policy, 1)
        );
        assert_eq!(
            Line::parse("TRACE: filter:a:b:return:3 "),
            line("filter", "a:b", Kind::Return, 3)
        );
        for other in [
            "nf_ct_proto_6: invalid new ",
            "TRACE: ",
            "TRACE: filter:INPUT:rule:0 ",
            "TRACE: filter:INPUT:jump:1 ",
            "TRACE: filter:INPUT:rule:-1 ",
            "TRACE: filter:rule:1 ",
        ] {
            assert_eq!(Line::parse(other), None, "{other}");
        }
    }

    #[test]
    fn an_entry_without_matches_is_a_rule_unless_it_is_the_last() {
        let policy = Line::parse("TRACE: filter:INPUT:policy:3 ").unwrap();
        assert_eq!(policy.rule(2), None);
        assert_eq!(policy.rule(3), Some(3));
        assert_eq!(policy.rule(9), Some(3));
        let rule = Line::parse("TRACE: filter:INPUT:rule:3 ").unwrap();
        assert_eq!(rule.rule(0), Some(3));
        let back = Line::parse("TRACE: filter:UC:return:3 ").unwrap();
        assert_eq!((back.rule(2), back.rule(3)), (None, Some(3)));
    }

    proptest! {
        #[test]
        fn reads_what_the_kernel_writes(
            table in "(raw|mangle|nat|filter|security)",
            chain in "[!-~]{1,28}",
            kind in "(rule|policy|return)",
            number in 1..=u32::MAX,
        ) {
            let text = format!("TRACE: {table}:{chain}:{kind}:{number} ");
            let line = Line::parse(&text).unwrap();
            prop_assert_eq!((line.table, line.chain, line.number), (&*table, &*chain, number));
        }

        #[test]
        fn never_panics(text in "\\PC{0,60}") {
            let _ = Line::parse(&text);
            let _ = Line::parse(&format!("TRACE: {text}"));
        }
    }
}
