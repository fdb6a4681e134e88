//! Command line -> a validated plan.
