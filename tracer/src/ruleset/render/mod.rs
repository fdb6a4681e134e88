//! Rules as `nft list ruleset` prints them.
