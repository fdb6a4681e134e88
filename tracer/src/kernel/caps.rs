//! Capabilities this process has and lacks.
