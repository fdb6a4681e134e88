//! Starting a run: what the kernel has, the programs, calibration, settings.

use std::{cell::RefCell, path::Path, rc::Rc};

use fwtrace_abi::{Counters, CtCounts, CtKey, Layout, Record, SNAP_MAX, Settings, Site};
use tokio::sync::mpsc;

use super::{
    legacy::Legacy,
    namespaces::Namespaces,
    nflog::Nflog,
    trace::{TraceError, Tracing},
};
use crate::{
    attribute::{Attributor, Depth, Locations},
    bpf::{
        calibrate::{CalibrationError, Calibrator},
        legacy,
        load::{BpfError, Programs},
        order::{self, Order},
        reader::{RawDrop, Reader, Source},
        slots::UNLEARNT,
    },
    cli::{self, Ebpf, Ladder, Live, Watch},
    eval::{overlong::Overlong, reach::Reach},
    kernel::{
        btf::BtfError,
        caps::{self, CapsError},
        hooks,
        layout::{self, Feature, Missing},
        overlong,
        reasons::Reasons,
        symbols::{Symbols, SymbolsError},
        types::{BTF_DIR, KernelTypes, TypesError},
    },
    output::{Format, error_text},
};

/// Batches on their way from the ring's reader.
const BATCHES: usize = 16;
/// Conntrack's hook functions, in the order of `Settings::conntrack_hooks`.
const CONNTRACK_HOOKS: [&str; 4] = [
    "ipv4_conntrack_in",
    "ipv4_conntrack_local",
    "ipv6_conntrack_in",
    "ipv6_conntrack_local",
];

/// The hook functions of ip_tables and ip6_tables, in the order of `Settings::legacy_hooks`.
const LEGACY_HOOKS: [&str; 4] = [
    "ipt_do_table",
    "iptable_mangle_hook",
    "ip6t_do_table",
    "ip6table_mangle_hook",
];
/// Those of nf_tables for IP, in the order of `Settings::nftables_hooks`.
const NFTABLES_HOOKS: [&str; 3] = [
    "nft_do_chain_ipv4",
    "nft_do_chain_ipv6",
    "nft_do_chain_inet",
];
/// What conntrack had counted at the last look.
const CT_COUNTS: &str = "CT_COUNTS";
/// Where the rules of ip_tables drop.
const HOOK_SLOW: &str = "nf_hook_slow";

/// Why a run cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Capabilities are missing.
    #[error(transparent)]
    Caps(#[from] CapsError),
    /// The kernel has no BTF.
    #[error(transparent)]
    Types(#[from] TypesError),
    /// The kernel's BTF lacks something.
    #[error("the kernel's BTF: {0}")]
    Btf(#[from] BtfError),
    /// A feature without which there is nothing to show.
    #[error("this kernel lacks what fwtrace needs: {0}; {cost}", cost = .0.feature.cost())]
    Essential(Missing),
    /// The kernel has no drop reasons: it is older than 5.17.
    #[error(
        "this kernel does not say why it drops packets (SKB_DROP_REASON_NETFILTER_DROP is missing); fwtrace needs Linux 6.1 or newer"
    )]
    NoReasons,
    /// The programs could not be loaded.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// The filter does not fit.
    #[error(transparent)]
    Usage(#[from] cli::Error),
    /// The reading thread.
    #[error("cannot start the ring's reader: {0}")]
    Thread(#[from] std::io::Error),
    /// `--trace` cannot be had.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// What the running kernel has.
pub struct Kernel {
    /// Offsets.
    pub layout: Layout,
    /// What is missing, by feature.
    pub missing: Vec<Missing>,
    /// Drop reasons.
    pub reasons: Reasons,
    /// Functions.
    pub symbols: Result<Symbols, SymbolsError>,
}

impl StartError {
    /// Whether what NFLOG rules log can be shown all the same, and is asked for.
    fn leaves_nflog(&self, plan: &Live) -> bool {
        let machine = matches!(
            self,
            Self::Caps(_)
                | Self::Types(_)
                | Self::Btf(_)
                | Self::Essential(_)
                | Self::NoReasons
                | Self::Bpf(_)
        );
        // The others speak of drops that only eBPF sees.
        let all = matches!(plan.filter.reasons, cli::Reasons::Netfilter);
        machine && plan.trace.is_none() && plan.write.is_none() && all
    }

    /// In a few words.
    fn in_short(&self) -> String {
        match self {
            Self::Caps(CapsError::Missing(needs)) => {
                let names: Vec<String> = needs.iter().map(|n| n.capability.to_string()).collect();
                let are = if names.len() == 1 { "is" } else { "are" };
                format!("{} {are} missing", names.join(", "))
            }
            Self::Bpf(_) if caps::in_user_namespace() => {
                "CAP_BPF does not count in a user namespace".to_owned()
            }
            error => error_text(error),
        }
    }
}

impl Kernel {
    /// Whether a feature is there.
    pub fn has(&self, feature: Feature) -> bool {
        self.missing.iter().all(|m| m.feature != feature)
    }
}

/// Looks at the running kernel.
///
/// # Errors
/// It has no BTF, or no drop reasons.
pub fn kernel() -> Result<Kernel, StartError> {
    std::thread::scope(|scope| {
        let symbols = scope.spawn(|| {
            let names: Vec<&'static str> = hooks::caller_names()
                .chain(["nft_do_chain"])
                .chain(CONNTRACK_HOOKS)
                .chain([HOOK_SLOW])
                .chain(LEGACY_HOOKS)
                .chain(NFTABLES_HOOKS)
                .chain(order::functions())
                .collect();
            Symbols::load(&names)
        });
        let types = KernelTypes::load(Path::new(BTF_DIR))?;
        let (layout, missing) = layout::resolve(&types);
        let reasons = Reasons::load(&types)?;
        Ok(Kernel {
            layout,
            missing,
            reasons,
            symbols: symbols.join().unwrap_or(Err(SymbolsError::Hidden)),
        })
    })
}

/// The kernel side of a run, if there is one.
pub(super) struct Tracer {
    attached: Option<Attached>,
    /// Keeps the channel of records open where none come.
    idle: Option<mpsc::Sender<Vec<RawDrop>>>,
}

/// The BPF programs at work.
struct Attached {
    programs: Programs,
    calibrator: Calibrator,
    settings: Settings,
    /// `Settings::snaplen` as it was asked for.
    snaplen: u32,
    /// The kernel was asked what it does with extension headers that are too long.
    asked: bool,
    reader: Reader,
    /// `None`: which legacy rule dropped cannot be told.
    legacy: Option<Legacy>,
    /// `None`: the order of chains with the same priority cannot be read.
    order: Option<Order>,
    /// What [`Tracer::missed`] was when it was stopped: what is dropped from then on is no business of this run.
    missed: Option<u64>,
}

/// A run that has begun.
pub(super) struct Started {
    pub(super) tracer: Tracer,
    pub(super) attributor: Attributor,
    /// The records.
    pub(super) batches: mpsc::Receiver<Vec<RawDrop>>,
    /// With `--trace`.
    pub(super) tracing: Option<Rc<RefCell<Tracing>>>,
    /// Packets that rules log.
    pub(super) nflog: Nflog,
    /// What the user should know about this kernel.
    pub(super) notes: Vec<String>,
    /// Why there is no eBPF, in a few words.
    pub(super) without: Option<String>,
}

/// The BPF programs, loaded and calibrated.
struct Loaded {
    kernel: Kernel,
    netfilter_drop: u32,
    settings: Settings,
    programs: Programs,
    calibrator: Calibrator,
    sites: Vec<Site>,
    notes: Vec<String>,
}

/// Starts everything that `plan` asks for.
pub(super) fn start(
    plan: &Live,
    namespaces: &Rc<RefCell<Namespaces>>,
) -> Result<Started, StartError> {
    let loaded = match plan.ebpf {
        Ebpf::Off => {
            caps::check_listening()?;
            Err(None)
        }
        wish => match load(plan) {
            Ok(loaded) => Ok(loaded),
            Err(error) if wish == Ebpf::May && error.leaves_nflog(plan) => Err(Some(error)),
            Err(error) => return Err(error),
        },
    };
    let mut notes = Vec::new();
    // Before the rulesets are read: the table is no news then.
    let tracing = plan.trace.map(|rate| Tracing::new(&plan.filter, rate));
    if let Some(tracing) = &tracing {
        for netns in plan.watch.namespaces() {
            match (tracing.borrow_mut().add(&netns), &plan.watch) {
                // One of all may be gone by now.
                (Err(error), Watch::All) => {
                    notes.push(format!("network namespace {netns}: {error}"));
                }
                (added, _) => added?,
            }
        }
    }
    for netns in plan.watch.namespaces() {
        namespaces.borrow_mut().add(&netns);
    }
    let nflog = Nflog::new(
        plan.nflog.clone(),
        plan.nflog_buffer,
        &plan.filter,
        plan.expression.as_ref(),
        loaded.is_err(),
    );
    let without = match loaded {
        Ok(loaded) => return attach(loaded, plan, namespaces, tracing, nflog, notes),
        Err(without) => without,
    };
    if let Some(error) = without.as_ref() {
        log::info!("no eBPF: {error}");
    }
    let without = match without {
        // Nothing would ever be shown.
        Some(error) if !nflog.is_wanted(&mut namespaces.borrow_mut()) => return Err(error),
        Some(error) => error.in_short(),
        None => "switched off by --source".to_owned(),
    };
    let (idle, batches) = mpsc::channel(1);
    Ok(Started {
        tracer: Tracer {
            attached: None,
            idle: Some(idle),
        },
        attributor: Attributor::new(
            Reasons::default(),
            Locations::new(Symbols::default(), &[]),
            u32::MAX,
            plan.evidence,
            depth(plan),
            None,
        ),
        batches,
        tracing,
        nflog,
        notes,
        without: Some(without),
    })
}

/// Loads the BPF programs and calibrates them.
fn load(plan: &Live) -> Result<Loaded, StartError> {
    caps::check_live_run()?;
    let kernel = kernel()?;
    if let Some(missing) = kernel.missing.iter().find(|m| m.feature.is_essential()) {
        return Err(StartError::Essential(missing.clone()));
    }
    let netfilter_drop = kernel
        .reasons
        .netfilter_drop()
        .ok_or(StartError::NoReasons)?;

    let mut settings = Settings::NONE;
    settings.netfilter_drop = netfilter_drop;
    settings.want_stack = 1;
    plan.apply(&mut settings, |name| kernel.reasons.value(name))?;
    if let Some(expression) = &plan.expression {
        settings.snaplen = settings.snaplen.max(expression.snaplen());
    }
    if let Ok(symbols) = &kernel.symbols {
        let start = |name| symbols.range(name).map_or(0, |range| range.start);
        settings.conntrack_hooks = CONNTRACK_HOOKS.map(start);
        settings.legacy_hooks = LEGACY_HOOKS.map(start);
        settings.nftables_hooks = NFTABLES_HOOKS.map(start);
        settings.hook_slow = symbols
            .range(HOOK_SLOW)
            .map_or([0; 2], |range| [range.start, range.end]);
    }

    let mut notes: Vec<String> = kernel
        .missing
        .iter()
        // Its types come with the first table of iptables-legacy, and go with the last one.
        .filter(|m| m.feature != Feature::KernelCounters)
        .map(|m| format!("{m}: {}", m.feature.cost()))
        .collect();
    if let Err(error) = &kernel.symbols {
        notes.push(format!(
            "{error}: hooks of unattributed drops are not known"
        ));
    }
    let mut programs = Programs::load(&kernel.layout)?;
    let mut calibrator = Calibrator::new(&mut programs)?;
    let stack = kernel.has(Feature::KernelStack) && kernel.has(Feature::HookState);
    let sites = match stack.then(|| calibrator.calibrate(&mut programs)) {
        Some(Ok(sites)) if plan.evidence != Ladder::Engine => sites,
        Some(Ok(sites)) => sites
            .iter()
            .map(|site| Site {
                location: site.location,
                kind: site.kind,
                ..UNLEARNT
            })
            .collect(),
        Some(Err(error)) => {
            notes.push(no_kernel_stack(&error));
            match error {
                CalibrationError::Unlearnt { kinds, .. } => kinds,
                _ => Vec::new(),
            }
        }
        None => Vec::new(),
    };
    install(&mut settings, &sites);
    programs.set_settings(&settings)?;
    Ok(Loaded {
        kernel,
        netfilter_drop,
        settings,
        programs,
        calibrator,
        sites,
        notes,
    })
}

/// Lets the BPF programs see the drops in the watched namespaces.
fn attach(
    loaded: Loaded,
    plan: &Live,
    namespaces: &Rc<RefCell<Namespaces>>,
    tracing: Option<Rc<RefCell<Tracing>>>,
    nflog: Nflog,
    mut notes: Vec<String>,
) -> Result<Started, StartError> {
    let Loaded {
        kernel,
        netfilter_drop,
        settings,
        mut programs,
        calibrator,
        sites,
        notes: more,
    } = loaded;
    notes.extend(more);
    if let Watch::These(watched) = &plan.watch {
        for netns in watched {
            programs.watch(netns.inode())?;
        }
    }
    let mut legacy = None;
    if plan.evidence != Ladder::Engine && counts(&kernel, &settings) {
        match legacy::Counters::new(&mut programs, &kernel.layout) {
            Ok(counters) => legacy = Some(Legacy::new(counters)),
            Err(error) => notes.push(format!("{error}: {}", Feature::KernelCounters.cost())),
        }
    }
    // Before the drops of that are seen.
    let asked = namespaces.borrow_mut().reach().extensions;
    let overlong = if asked {
        overlong()
    } else {
        Overlong::default()
    };
    let source = if settings.wants_whole_packets() {
        Source::Buffers(programs.take_buffers()?)
    } else {
        Source::Ring(programs.take_ring("RING")?)
    };
    let (reader, batches) = Reader::start(source, BATCHES, settings.snaplen)?;
    programs.attach("drops")?;
    programs.detach("calibrate")?;
    programs.forget_btf();
    let order = lists(&kernel).then(|| kernel.symbols.as_ref().ok().cloned().map(Order::new));
    let order = order.flatten();
    let locations = Locations::new(kernel.symbols.unwrap_or_default(), &sites);
    let mut attributor = Attributor::new(
        kernel.reasons,
        locations,
        netfilter_drop,
        plan.evidence,
        depth(plan),
        calibrator.inverts_last(),
    );
    let mut tracer = Tracer {
        attached: Some(Attached {
            programs,
            calibrator,
            snaplen: settings.snaplen,
            asked,
            settings,
            reader,
            legacy,
            order,
            missed: None,
        }),
        idle: None,
    };
    attributor.learn(overlong);
    tracer.tell_counters(&mut namespaces.borrow_mut());
    tracer.follow_reach(&mut namespaces.borrow_mut(), &mut attributor)?;
    notes.extend(tracer.sync_legacy(&mut namespaces.borrow_mut(), &mut attributor));
    Ok(Started {
        tracer,
        attributor,
        batches,
        tracing,
        nflog,
        notes,
        without: None,
    })
}

/// Whether the rules of legacy tables can be told by their counters.
fn counts(kernel: &Kernel, settings: &Settings) -> bool {
    let needed = [
        Feature::KernelCounters,
        Feature::HookState,
        Feature::ConntrackHooks,
    ];
    needed.into_iter().all(|feature| kernel.has(feature)) && settings.hook_slow[0] != 0
}

/// Whether the order in which hooks call base chains can be read.
fn lists(kernel: &Kernel) -> bool {
    let needed = [
        Feature::ConntrackHooks,
        Feature::Generation,
        Feature::KernelStack,
    ];
    needed.into_iter().all(|feature| kernel.has(feature))
}

/// What the output shows, and the file keeps, beside the rule.
fn depth(plan: &Live) -> Depth {
    let shown = match (plan.output.verbosity, plan.output.format) {
        (0, Format::Text | Format::Nothing) => Depth::Rule,
        (0, Format::Json) => Depth::Path,
        (1, _) => Depth::Walk,
        _ => Depth::All,
    };
    // Whoever reads the file may ask for -v.
    match plan.write {
        Some(_) => shown.max(Depth::Walk),
        None => shown,
    }
}

/// What the kernel does with extension headers that are too long.
fn overlong() -> Overlong {
    overlong::ask().unwrap_or_else(|error| {
        log::info!("extension headers of IPv6 that are too long: {error}");
        Overlong::default()
    })
}

fn install(settings: &mut Settings, sites: &[Site]) {
    settings.sites = Settings::NONE.sites;
    for (to, from) in settings.sites.iter_mut().zip(sites) {
        *to = *from;
    }
}

fn no_kernel_stack(error: &CalibrationError) -> String {
    format!(
        "{error}; rules are not read from the kernel's stack, drops are shown by engine and hook"
    )
}

impl Tracer {
    /// Learns the slots again; gives a line for the user.
    pub(super) fn recalibrate(&mut self) -> Result<String, BpfError> {
        match &mut self.attached {
            Some(attached) => attached.recalibrate(),
            None => Ok(String::new()),
        }
    }

    /// What reads the order of chains with the same priority.
    pub(super) fn order(&mut self) -> Option<(&mut Order, &mut Programs)> {
        self.attached.as_mut()?.order()
    }

    /// Takes a look at a record: it may say that legacy tables are others by now.
    pub(super) fn note(&mut self, record: &Record) {
        if let Some(attached) = &mut self.attached {
            attached.note(record);
        }
    }

    /// Whether drops wait for legacy tables to be taken in.
    pub(super) fn is_legacy_due(&self) -> bool {
        self.attached.as_ref().is_some_and(Attached::is_legacy_due)
    }

    /// Takes in legacy tables that are new or have been replaced; gives lines for the user.
    pub(super) fn sync_legacy(
        &mut self,
        namespaces: &mut Namespaces,
        attributor: &mut Attributor,
    ) -> Vec<String> {
        match &mut self.attached {
            Some(attached) => attached.sync_legacy(namespaces, attributor),
            None => Vec::new(),
        }
    }

    /// Has as much of packets captured as the rules of the watched namespaces look at now, and asks the kernel what they ask for.
    pub(super) fn follow_reach(
        &mut self,
        namespaces: &mut Namespaces,
        attributor: &mut Attributor,
    ) -> Result<(), BpfError> {
        match &mut self.attached {
            Some(attached) => attached.reach(namespaces.reach(), attributor),
            None => Ok(()),
        }
    }

    /// Whether in a flood a record may stand for several drops.
    pub(super) fn sample(&mut self, sampling: bool) -> Result<(), BpfError> {
        match &mut self.attached {
            Some(attached) => attached.sample(sampling),
            None => Ok(()),
        }
    }

    /// Tells the programs what conntrack has counted before its namespaces were watched.
    pub(super) fn tell_counters(&mut self, namespaces: &mut Namespaces) {
        if let Some(attached) = &mut self.attached {
            attached.tell_counters(namespaces);
        }
    }

    /// Stops watching a namespace; its inode may be used again.
    pub(super) fn unwatch(&mut self, netns: u32) -> Result<(), BpfError> {
        match &mut self.attached {
            Some(attached) => attached.unwatch(netns),
            None => Ok(()),
        }
    }

    /// Detaches, and lets the reader drain the ring and end.
    pub(super) fn stop(&mut self) -> Result<(), BpfError> {
        self.idle = None;
        match &mut self.attached {
            Some(attached) => attached.stop(),
            None => Ok(()),
        }
    }

    /// The kernel side's counters.
    pub(super) fn counters(&self) -> Result<Counters, BpfError> {
        match &self.attached {
            Some(attached) => attached.counters(),
            None => Ok(Counters::default()),
        }
    }

    /// Drops that were only counted, by reason.
    pub(super) fn reason_counts(&self) -> Result<Vec<(u32, u64)>, BpfError> {
        match &self.attached {
            Some(attached) => attached.programs.reason_counts(),
            None => Ok(Vec::new()),
        }
    }

    /// Drops that came while the program was at work on the same CPU, which the kernel does not show it: those in the watched
    /// namespaces, and those of which not even that is known.
    pub(super) fn missed(&self) -> Result<u64, BpfError> {
        match &self.attached {
            Some(attached) => attached.missed(),
            None => Ok(0),
        }
    }

    /// Drops that matched, or may have, and cannot be shown.
    pub(super) fn lost(&self) -> Result<u64, BpfError> {
        match &self.attached {
            Some(attached) => attached.lost(),
            None => Ok(0),
        }
    }
}

impl Attached {
    fn recalibrate(&mut self) -> Result<String, BpfError> {
        let (sites, line) = match self.calibrator.calibrate(&mut self.programs) {
            Ok(sites) => {
                let same = self.settings.sites.iter().zip(&sites).all(|(a, b)| a == b);
                let line = if same {
                    "a drop's rule could not be validated; calibrated again, nothing has changed"
                } else {
                    "the kernel's stack has changed its shape; calibrated again"
                };
                (sites, line.to_owned())
            }
            Err(error) => (Vec::new(), no_kernel_stack(&error)),
        };
        install(&mut self.settings, &sites);
        self.programs.set_settings(&self.settings)?;
        self.programs.detach("calibrate")?;
        Ok(line)
    }

    /// Captures so many bytes, as far as a record can hold them, or more where that was asked for.
    fn reach(&mut self, reach: Reach, attributor: &mut Attributor) -> Result<(), BpfError> {
        // Where all namespaces are watched, the drops of that would be seen.
        if reach.extensions && !self.asked && self.settings.all_netns == 0 {
            self.asked = true;
            attributor.learn(overlong());
        }
        let snaplen = self.snaplen.max(reach.bytes.min(SNAP_MAX as u32));
        if self.settings.snaplen != snaplen {
            self.settings.snaplen = snaplen;
            self.programs.set_settings(&self.settings)?;
        }
        Ok(())
    }

    fn sample(&mut self, sampling: bool) -> Result<(), BpfError> {
        let sampling = sampling.into();
        if self.settings.sampling != sampling {
            self.settings.sampling = sampling;
            self.programs.set_settings(&self.settings)?;
        }
        Ok(())
    }

    fn note(&mut self, record: &Record) {
        if let Some(legacy) = &mut self.legacy {
            legacy.note(record);
        }
    }

    fn is_legacy_due(&self) -> bool {
        self.legacy.as_ref().is_some_and(Legacy::is_due)
    }

    fn sync_legacy(
        &mut self,
        namespaces: &mut Namespaces,
        attributor: &mut Attributor,
    ) -> Vec<String> {
        let Some(legacy) = &mut self.legacy else {
            return Vec::new();
        };
        legacy.sync(&mut self.programs, namespaces, attributor)
    }

    fn tell_counters(&mut self, namespaces: &mut Namespaces) {
        for (netns, cpu, counters) in namespaces.untold_counters() {
            let counts = CtCounts {
                drop: counters.drop,
                insert_failed: counters.insert_failed,
                early_drop: counters.early_drop,
                chain_too_long: counters.chain_too_long,
                invalid: counters.invalid,
                // Where there were some before, the first packet that is counted may be one of them.
                skipped: 0,
            };
            // A drop since then has left newer ones.
            let key = CtKey { netns, cpu };
            if let Err(error) = self.programs.add_entry(CT_COUNTS, &key, &counts) {
                log::warn!("conntrack's counters of network namespace {netns}: {error}");
            }
        }
    }

    fn order(&mut self) -> Option<(&mut Order, &mut Programs)> {
        Some((self.order.as_mut()?, &mut self.programs))
    }

    fn unwatch(&mut self, netns: u32) -> Result<(), BpfError> {
        if let Some(legacy) = &mut self.legacy {
            legacy.forget(&mut self.programs, netns)?;
        }
        self.programs.unwatch(netns)?;
        for cpu in aya::util::online_cpus().unwrap_or_default() {
            self.programs
                .set_entry::<_, CtCounts>(CT_COUNTS, &CtKey { netns, cpu }, None)?;
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), BpfError> {
        self.missed = Some(self.missed()?);
        self.programs.detach("drops")?;
        self.reader.stop();
        Ok(())
    }

    fn counters(&self) -> Result<Counters, BpfError> {
        self.programs.counters()
    }

    fn missed(&self) -> Result<u64, BpfError> {
        if let Some(missed) = self.missed {
            return Ok(missed);
        }
        // The kernel's count first: what comes in between is then known, not unknown.
        let all = self.programs.missed();
        let counters = self.counters()?;
        Ok(all.saturating_sub(counters.skipped) + counters.skipped_here)
    }

    fn lost(&self) -> Result<u64, BpfError> {
        Ok(self.counters()?.full + self.missed()? + self.reader.undecoded())
    }
}
