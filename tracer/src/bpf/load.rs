//! Loading and attaching the BPF programs, and their maps.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, AsRawFd},
};

use aya::{
    Btf, Ebpf, EbpfLoader, Pod,
    maps::{
        Array, HashMap, MapData, MapError, PerCpuArray, PerCpuHashMap, PerfEventArray, RingBuf,
    },
    programs::{
        BtfTracePoint, RawTracePoint, RawTracePointRunOptions, TestRun, tp_btf::BtfTracePointLinkId,
    },
};
use fwtrace_abi::{Counters, Layout, Settings};

use super::{
    buffers::{Buffers, BuffersError},
    legacy,
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("FWTRACE_BPF_OBJECT"));

const TRACEPOINT: &str = "kfree_skb";

/// Why the BPF programs could not be used.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The kernel's type information could not be read.
    #[error(
        "cannot read the kernel's BTF (/sys/kernel/btf/vmlinux): {0}; fwtrace needs a kernel built with CONFIG_DEBUG_INFO_BTF"
    )]
    Btf(#[from] aya::BtfError),
    /// The object could not be loaded.
    #[error("cannot load the BPF object: {0}")]
    Load(#[from] aya::EbpfError),
    /// The kernel refused a program.
    #[error("the kernel refused the BPF program `{name}`: {source}")]
    Program {
        /// The program.
        name: &'static str,
        /// What the kernel said, with the verifier's log.
        source: aya::programs::ProgramError,
    },
    /// A map operation failed.
    #[error("BPF map: {0}")]
    Map(#[from] aya::maps::MapError),
    /// The buffers for whole packets.
    #[error(transparent)]
    Buffers(#[from] BuffersError),
    /// The object lacks something; it was built from other sources.
    #[error("the BPF object has no `{0}`; rebuild fwtrace")]
    Missing(&'static str),
}

/// The programs and maps of one run. Everything goes with this value: nothing is pinned.
pub struct Programs {
    ebpf: Ebpf,
    btf: Option<Btf>,
    links: BTreeMap<&'static str, BtfTracePointLinkId>,
}

impl Programs {
    /// Creates the maps for the kernel that `layout` describes; programs are loaded when they are
    /// attached first.
    ///
    /// # Errors
    /// See [`BpfError`].
    pub fn load(layout: &Layout) -> Result<Self, BpfError> {
        // Both parse the kernel's BTF, tens of milliseconds each: side by side.
        std::thread::scope(|scope| {
            let btf = scope.spawn(Btf::from_sys_fs);
            let mut loader = EbpfLoader::new();
            loader.override_global("LAYOUT", layout, true);
            let blocks = legacy::blocks(layout);
            for map in legacy::BLOCK_MAPS {
                loader.map_max_entries(map, blocks);
            }
            let ebpf = loader.load(OBJECT);
            let btf = btf.join().map_err(|_| BpfError::Missing("BTF"))??;
            Ok(Self {
                ebpf: ebpf?,
                btf: Some(btf),
                links: BTreeMap::new(),
            })
        })
    }

    /// Attaches `name`, loading it the first time; does nothing if it is attached.
    ///
    /// # Errors
    /// The verifier's refusal, or no tracepoint of that name.
    pub fn attach(&mut self, name: &'static str) -> Result<(), BpfError> {
        if self.links.contains_key(name) {
            return Ok(());
        }
        let refused = |source| BpfError::Program { name, source };
        let program: &mut BtfTracePoint = self
            .ebpf
            .program_mut(name)
            .ok_or(BpfError::Missing(name))?
            .try_into()
            .map_err(refused)?;
        if program.fd().is_err() {
            let btf = self.btf.as_ref().ok_or(BpfError::Missing("BTF"))?;
            program.load(TRACEPOINT, btf).map_err(refused)?;
        }
        let link = program.attach().map_err(refused)?;
        self.links.insert(name, link);
        Ok(())
    }

    /// Detaches `name`; it stays loaded.
    ///
    /// # Errors
    /// The kernel's.
    pub fn detach(&mut self, name: &'static str) -> Result<(), BpfError> {
        let Some(link) = self.links.remove(name) else {
            return Ok(());
        };
        let program: &mut BtfTracePoint = self
            .ebpf
            .program_mut(name)
            .ok_or(BpfError::Missing(name))?
            .try_into()
            .map_err(|source| BpfError::Program { name, source })?;
        program
            .detach(link)
            .map_err(|source| BpfError::Program { name, source })
    }

    /// Loads `name`, a program that is only ever run by [`Programs::run`].
    ///
    /// # Errors
    /// The verifier's refusal.
    pub fn load_runnable(&mut self, name: &'static str) -> Result<(), BpfError> {
        let refused = |source| BpfError::Program { name, source };
        self.runnable(name)?.load().map_err(refused)
    }

    /// Runs `name` with one argument, on CPU `cpu` or on this one.
    ///
    /// # Errors
    /// It is not loaded, or there is no such CPU now.
    pub fn run(
        &mut self,
        name: &'static str,
        argument: u64,
        cpu: Option<u32>,
    ) -> Result<(), BpfError> {
        let mut options = RawTracePointRunOptions::new();
        options.args[0] = argument;
        options.cpu = cpu;
        let ran = self.runnable(name)?.test_run(options);
        // The programs' own answers stand in maps: what these return is always 0.
        ran.map(drop)
            .map_err(|source| BpfError::Program { name, source })
    }

    fn runnable(&mut self, name: &'static str) -> Result<&mut RawTracePoint, BpfError> {
        let program = self.ebpf.program_mut(name).ok_or(BpfError::Missing(name))?;
        program
            .try_into()
            .map_err(|source| BpfError::Program { name, source })
    }

    /// Frees the kernel's parsed BTF (tens of megabytes); no program can be loaded after it.
    pub fn forget_btf(&mut self) {
        self.btf = None;
    }

    /// Writes the settings; they hold from the next drop on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_settings(&mut self, settings: &Settings) -> Result<(), BpfError> {
        let mut map: Array<_, Settings> = Array::try_from(self.map_mut("SETTINGS")?)?;
        Ok(map.set(0, settings, 0)?)
    }

    /// Starts watching the network namespace with this inode.
    ///
    /// # Errors
    /// The kernel's; the map holds 4096 namespaces.
    pub fn watch(&mut self, netns: u32) -> Result<(), BpfError> {
        let mut map: HashMap<_, u32, u8> = HashMap::try_from(self.map_mut("NETNS")?)?;
        Ok(map.insert(netns, 1, 0)?)
    }

    /// Stops watching it.
    ///
    /// # Errors
    /// The kernel's; one that is not watched is none.
    pub fn unwatch(&mut self, netns: u32) -> Result<(), BpfError> {
        let mut map: HashMap<_, u32, u8> = HashMap::try_from(self.map_mut("NETNS")?)?;
        match map.remove(&netns) {
            Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(err))
                if err.io_error.raw_os_error() == Some(libc::ENOENT) =>
            {
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Sets the namespace that the calibration program looks at.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_calibration_netns(&mut self, netns: u32) -> Result<(), BpfError> {
        let mut map: Array<_, u32> = Array::try_from(self.map_mut("CALIBRATION_NETNS")?)?;
        Ok(map.set(0, netns, 0)?)
    }

    /// Takes the perf buffers for whole packets out of the object, once.
    ///
    /// # Errors
    /// The kernel does not give as much memory, or [`BpfError::Missing`] the second time.
    pub fn take_buffers(&mut self) -> Result<Buffers, BpfError> {
        let map = self.ebpf.take_map("WHOLE");
        let map = map.ok_or(BpfError::Missing("WHOLE"))?;
        Ok(Buffers::open(PerfEventArray::try_from(map)?)?)
    }

    /// Takes a ring out of the object; each can be taken once.
    ///
    /// # Errors
    /// [`BpfError::Missing`] the second time.
    pub fn take_ring(&mut self, name: &'static str) -> Result<RingBuf<MapData>, BpfError> {
        let map = self.ebpf.take_map(name).ok_or(BpfError::Missing(name))?;
        Ok(RingBuf::try_from(map)?)
    }

    /// The counters, summed over the CPUs.
    ///
    /// # Errors
    /// The kernel's.
    pub fn counters(&self) -> Result<Counters, BpfError> {
        let map: PerCpuArray<_, Counters> = PerCpuArray::try_from(self.map("COUNTERS")?)?;
        let mut sum = Counters::default();
        for cpu in map.get(&0, 0)?.iter() {
            sum.seen += cpu.seen;
            sum.filtered += cpu.filtered;
            sum.other += cpu.other;
            sum.sent += cpu.sent;
            sum.aggregated += cpu.aggregated;
            sum.full += cpu.full;
            sum.skipped += cpu.skipped;
            sum.skipped_here += cpu.skipped_here;
        }
        Ok(sum)
    }

    /// Drops that matched but were only counted: reason and count, summed over the CPUs.
    ///
    /// # Errors
    /// The kernel's.
    pub fn reason_counts(&self) -> Result<Vec<(u32, u64)>, BpfError> {
        let map: PerCpuHashMap<_, u32, u64> = PerCpuHashMap::try_from(self.map("REASON_COUNTS")?)?;
        map.iter()
            .map(|entry| {
                let (reason, cpus) = entry?;
                Ok((reason, cpus.iter().sum()))
            })
            .collect()
    }

    /// Drops that came while `drops` was at work on the same CPU, which the kernel skips and counts
    /// (`recursion_misses` in the program's fdinfo, kernel/bpf/syscall.c, v6.18), whatever namespace they were in.
    pub fn missed(&self) -> u64 {
        let fd = self.ebpf.program("drops").and_then(|p| p.fd().ok());
        fd.and_then(|fd| {
            let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
            let info = std::fs::read_to_string(path).ok()?;
            info.lines()
                .find_map(|line| line.strip_prefix("recursion_misses:"))?
                .trim()
                .parse()
                .ok()
        })
        .unwrap_or(0)
    }

    /// Entry `index` of an array map.
    ///
    /// # Errors
    /// The kernel's.
    pub fn element<T: Pod>(&self, name: &'static str, index: u32) -> Result<T, BpfError> {
        let map: Array<_, T> = Array::try_from(self.map(name)?)?;
        Ok(map.get(&index, 0)?)
    }

    /// Sets entries of an array map, from the first on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_elements<T: Pod>(
        &mut self,
        name: &'static str,
        first: u32,
        values: &[T],
    ) -> Result<(), BpfError> {
        let mut map: Array<_, T> = Array::try_from(self.map_mut(name)?)?;
        for (index, value) in (first..).zip(values) {
            map.set(index, value, 0)?;
        }
        Ok(())
    }

    /// Sets an entry of a hash map, or removes it.
    ///
    /// # Errors
    /// The kernel's: the map is full.
    pub fn set_entry<K: Pod, V: Pod>(
        &mut self,
        name: &'static str,
        key: &K,
        value: Option<&V>,
    ) -> Result<(), BpfError> {
        let mut map: HashMap<_, K, V> = HashMap::try_from(self.map_mut(name)?)?;
        match value {
            Some(value) => map.insert(key, value, 0)?,
            // One that is not there is as good as removed.
            None => map.remove(key).or(Ok::<(), MapError>(()))?,
        }
        Ok(())
    }

    /// Adds an entry to a hash map, unless it is there.
    ///
    /// # Errors
    /// The kernel's: the map is full.
    pub fn add_entry<K: Pod, V: Pod>(
        &mut self,
        name: &'static str,
        key: &K,
        value: &V,
    ) -> Result<(), BpfError> {
        /// include/uapi/linux/bpf.h, v6.18.
        const BPF_NOEXIST: u64 = 1;
        let mut map: HashMap<_, K, V> = HashMap::try_from(self.map_mut(name)?)?;
        match map.insert(key, value, BPF_NOEXIST) {
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::EEXIST) =>
            {
                Ok(())
            }
            other => Ok(other?),
        }
    }

    fn map(&self, name: &'static str) -> Result<&aya::maps::Map, BpfError> {
        self.ebpf.map(name).ok_or(BpfError::Missing(name))
    }

    fn map_mut(&mut self, name: &'static str) -> Result<&mut aya::maps::Map, BpfError> {
        self.ebpf.map_mut(name).ok_or(BpfError::Missing(name))
    }
}
