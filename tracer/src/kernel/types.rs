//! The running kernel's BTF files: vmlinux, and the modules fwtrace has questions about.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::btf::{Btf, BtfError, Field};

/// Where the kernel shows its BTF.
pub const BTF_DIR: &str = "/sys/kernel/btf";

/// Modules with structs or enums fwtrace reads, where they are not built into the kernel. One
/// that is not loaded has no file.
const MODULES: &[&str] = &[
    "nf_tables",
    "nf_conntrack",
    "x_tables",
    "ip_tables",
    "ip6_tables",
    "openvswitch",
    "mac80211",
];

/// Why the kernel's types could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TypesError {
    /// The kernel shows no BTF.
    #[error(
        "{path} is not there: this kernel was built without CONFIG_DEBUG_INFO_BTF, and fwtrace \
         cannot know its structs; use a kernel that has it (most distributions' kernels do)"
    )]
    Absent {
        /// The file.
        path: PathBuf,
    },
    /// The file could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file could not be parsed.
    #[error("cannot parse {path}: {source}")]
    Btf {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: BtfError,
    },
}

/// The types of the kernel and of the modules that matter. Some 6 MiB: drop it once the layout
/// and the drop reasons are known.
#[derive(Debug)]
pub struct KernelTypes {
    vmlinux: Arc<Btf>,
    modules: Vec<Btf>,
}

impl KernelTypes {
    /// Reads the BTF files in `dir` ([`BTF_DIR`] but for tests). A module's file that cannot be
    /// read or parsed costs that module only, and a line of warning.
    ///
    /// # Errors
    /// When there is no `vmlinux` in `dir`, or it cannot be read or parsed.
    pub fn load(dir: &Path) -> Result<Self, TypesError> {
        let path = dir.join("vmlinux");
        let data = match fs::read(&path) {
            Ok(data) => data,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(TypesError::Absent { path });
            }
            Err(source) => return Err(TypesError::Io { path, source }),
        };
        let vmlinux = match Btf::parse(data) {
            Ok(btf) => Arc::new(btf),
            Err(source) => return Err(TypesError::Btf { path, source }),
        };
        let mut modules = Vec::new();
        for name in MODULES {
            let path = dir.join(name);
            let parsed = match fs::read(&path) {
                Ok(data) => Btf::parse_split(data, Arc::clone(&vmlinux)).map_err(|e| e.to_string()),
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => Err(e.to_string()),
            };
            match parsed {
                Ok(btf) => modules.push(btf),
                Err(e) => log::warn!("{}: {e}: going on without it", path.display()),
            }
        }
        Ok(Self { vmlinux, modules })
    }

    /// [`Btf::field`], in vmlinux, else in the modules.
    ///
    /// # Errors
    /// As [`Btf::field`].
    pub fn field(&self, path: &str) -> Result<Field, BtfError> {
        self.first(|btf| btf.field(path))
    }

    /// [`Btf::size_of`], in vmlinux, else in the modules.
    ///
    /// # Errors
    /// As [`Btf::field`].
    pub fn size_of(&self, name: &str) -> Result<u32, BtfError> {
        self.first(|btf| btf.size_of(name))
    }

    /// [`Btf::enum_values`], in vmlinux, else in the modules.
    ///
    /// # Errors
    /// As [`Btf::field`].
    pub fn enum_values(&self, name: &str) -> Result<Vec<(String, i64)>, BtfError> {
        self.first(|btf| btf.enum_values(name))
    }

    fn first<T>(&self, read: impl Fn(&Btf) -> Result<T, BtfError>) -> Result<T, BtfError> {
        let mut error = match read(&self.vmlinux) {
            Err(error) if error.is_missing() => error,
            answer => return answer,
        };
        for module in &self.modules {
            match read(module) {
                // A struct without the member says more than no struct at all.
                Err(e @ BtfError::NoMember { .. }) => error = e,
                Err(e) if e.is_missing() => {}
                answer => return answer,
            }
        }
        Err(error)
    }
}

impl From<Btf> for KernelTypes {
    /// A kernel without modules.
    fn from(vmlinux: Btf) -> Self {
        Self {
            vmlinux: Arc::new(vmlinux),
            modules: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::btf::tests::{Builder, STRUCT};

    #[test]
    fn an_absent_file_is_named_and_explained() {
        let dir = tempfile::tempdir().unwrap();
        let error = KernelTypes::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&dir.path().join("vmlinux").display().to_string()));
        assert!(error.contains("CONFIG_DEBUG_INFO_BTF"));
    }

    #[test]
    fn looks_in_the_modules_for_what_vmlinux_lacks() {
        let dir = tempfile::tempdir().unwrap();
        let mut b = Builder::new();
        let int = b.int("u32", 4);
        b.composite("core", STRUCT, 4, &[("x", int, 0)]);
        fs::write(dir.path().join("vmlinux"), b.build()).unwrap();
        let vmlinux = Btf::parse(b.build()).unwrap();
        let mut b = Builder::split(&vmlinux);
        b.composite("nft_chain", STRUCT, 8, &[("", int, 0), ("name", int, 32)]);
        fs::write(dir.path().join("nf_tables"), b.build()).unwrap();
        fs::write(dir.path().join("x_tables"), "rubbish").unwrap();
        let types = KernelTypes::load(dir.path()).unwrap();
        let offset = |path| types.field(path).map(|f| f.byte_offset());
        assert_eq!(offset("core.x"), Ok(Some(0)));
        assert_eq!(offset("nft_chain.name"), Ok(Some(4)));
        assert_eq!(types.size_of("nft_chain"), Ok(8));
        assert!(matches!(
            offset("nft_chain.gone"),
            Err(BtfError::NoMember { .. })
        ));
        assert!(matches!(offset("gone.x"), Err(BtfError::NoType { .. })));
    }

    #[test]
    fn a_broken_vmlinux_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("vmlinux"), "rubbish").unwrap();
        let error = KernelTypes::load(dir.path()).unwrap_err();
        assert!(matches!(error, TypesError::Btf { .. }), "{error}");
    }
}
