//! A netns's rulesets by generation, followed live.
