//! Drop record + ruleset -> attributed event.
