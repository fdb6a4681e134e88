//! `enum skb_drop_reason` of the running kernel.
