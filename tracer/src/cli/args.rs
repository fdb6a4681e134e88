//! The flags, as clap sees them.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser, Subcommand, ValueEnum};

use super::capture::CaptureArgs;
use super::extcap::{Extcap, ExtcapArgs};
use super::plan::{
    Demo, Ebpf, Expressed, Features, Filter, Groups, Ladder, Live, Plan, Reasons, Replay, Rules,
    Watch,
};
use super::values::{self, Ports, Prefix};
use super::{Error, PortMatch, PrefixMatch, Side, push};
use crate::demo::{self, scenes::Scene};
use crate::event::Hook;
use crate::expr::{self, Expression};
use crate::extcap::Question;
use crate::output::{Format, Options};
use crate::packet::Proto;

/// Name the exact firewall rule behind each packet that Linux drops, live, changing nothing.
///
/// Every condition must hold; the values of one flag are alternatives. Without conditions, every
/// drop by netfilter in the current network namespace is shown.
#[derive(Debug, Parser)]
#[command(
    name = "fwtrace",
    version,
    args_conflicts_with_subcommands = true,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 runtime error, 2 wrong usage, 3 missing permission or kernel support."
)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    live: LiveArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the rulesets as the kernel holds them: numbers, handles, counters, text
    Rules(RulesArgs),
    /// Print what this machine allows, and what the missing abilities cost
    Features {
        /// One JSON object a line
        #[arg(short, long)]
        json: bool,
    },
    /// Show fwtrace at work: a broken firewall in namespaces of its own, real traffic
    Demo {
        /// The scene; without it, all of them
        name: Option<String>,
        /// List the scenes
        #[arg(long)]
        list: bool,
        /// One JSON object a line
        #[arg(short, long, conflicts_with = "list")]
        json: bool,
    },
    /// Be an interface of Wireshark: it calls this by itself
    Extcap(Box<ExtcapArgs>),
}

#[derive(Debug, clap::Args)]
struct NetnsArgs {
    /// Network namespace: a name of `ip netns`, a path or a process id [default: the current one]
    #[arg(short = 'N', long, value_name = "NAME|PATH|PID", value_delimiter = ',')]
    netns: Vec<String>,
    /// Every network namespace
    #[arg(long, conflicts_with = "netns")]
    all_netns: bool,
}

impl NetnsArgs {
    fn watch(&self) -> Result<Watch, Error> {
        if self.all_netns {
            Ok(Watch::All)
        } else {
            Watch::find(&self.netns)
        }
    }
}

#[derive(Debug, clap::Args)]
struct LiveArgs {
    /// Only packets that meet this expression of tcpdump's language, pcap-filter(7): tcp and dst net 10.0.0.0/8 and not port 22
    #[arg(value_name = "EXPRESSION")]
    expression: Vec<String>,
    /// Print which parts of EXPRESSION the kernel checks and which fwtrace, and its program as tcpdump -d does; then exit
    #[arg(short = 'd', requires = "expression", help_heading = "Filters")]
    explain_expression: bool,
    /// Source or destination port: a number, a range A-B or a name of /etc/services
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = values::ports, help_heading = "Filters")]
    port: Vec<Ports>,
    /// Source port
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = values::ports, help_heading = "Filters")]
    sport: Vec<Ports>,
    /// Destination port
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = values::ports, help_heading = "Filters")]
    dport: Vec<Ports>,
    /// Source or destination: an address or a CIDR prefix
    #[arg(long, value_name = "ADDR", value_delimiter = ',', value_parser = values::prefix, help_heading = "Filters")]
    host: Vec<Prefix>,
    /// Source address or prefix
    #[arg(long, value_name = "ADDR", value_delimiter = ',', value_parser = values::prefix, help_heading = "Filters")]
    src: Vec<Prefix>,
    /// Destination address or prefix
    #[arg(long, value_name = "ADDR", value_delimiter = ',', value_parser = values::prefix, help_heading = "Filters")]
    dst: Vec<Prefix>,
    /// IP protocol, by name or number
    #[arg(long, value_name = "PROTO", value_parser = values::proto, help_heading = "Filters")]
    proto: Option<Proto>,
    /// Interface that the packet came in on or was going out of
    #[arg(
        short,
        long,
        value_name = "IFACE",
        value_delimiter = ',',
        help_heading = "Filters"
    )]
    iface: Vec<String>,
    /// IPv4 only
    #[arg(short = '4', conflicts_with = "ipv6", help_heading = "Filters")]
    ipv4: bool,
    /// IPv6 only
    #[arg(short = '6', help_heading = "Filters")]
    ipv6: bool,
    /// Netfilter hook
    #[arg(long, value_enum, value_delimiter = ',', help_heading = "Filters")]
    hook: Vec<HookArg>,
    /// Table of the rule; drops whose rule is not known are shown too
    #[arg(long, value_name = "[FAMILY ]TABLE", value_delimiter = ',', value_parser = values::table, help_heading = "Filters")]
    table: Vec<values::Table>,
    /// Chain of the rule, or the base chain that led to it; drops whose rule is not known are shown too
    #[arg(long, value_delimiter = ',', help_heading = "Filters")]
    chain: Vec<String>,
    /// Drop reason, as in `enum skb_drop_reason`, or `all`; others than the firewall's are explained [default: NETFILTER_DROP]
    #[arg(
        long,
        value_name = "NAME|all",
        value_delimiter = ',',
        help_heading = "Filters"
    )]
    reason: Vec<String>,

    #[command(flatten)]
    capture: CaptureArgs,
    #[command(flatten)]
    netns: NetnsArgs,
    /// Have the kernel tell the way through the rules of up to RATE matching packets a second (0: of all) [default: 20]. Adds a table
    /// of its own, inet fwtrace, while it runs, has conntrack log which packets are invalid and why, and says so
    #[arg(long, value_name = "RATE", num_args = 0..=1, require_equals = true, default_missing_value = "20")]
    trace: Option<u32>,
    /// Where drops are learnt from, several of them with commas between: ebpf, nflog (packets that rules log), trace (as --trace)
    /// [default: what the machine allows of ebpf and nflog]
    #[arg(long, value_enum, value_name = "SOURCE", value_delimiter = ',')]
    source: Vec<Source>,
    /// Listen to these NFLOG groups: what a rule logs to them is shown with the drop that follows. 5 or 1,5-7; auto: those that the
    /// rules log to; none
    #[arg(long, value_name = "GROUPS|auto|none", default_value = "auto", value_parser = values::groups)]
    nflog: Groups,
    /// Room for logged packets, bytes a group
    #[arg(long, value_name = "BYTES", hide = true, default_value_t = 16 << 20)]
    nflog_buffer: usize,
    /// Stop after COUNT drops
    #[arg(short, long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Stop after this long: 30, 30s, 5m
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    duration: Option<Duration>,
    /// One JSON object a line
    #[arg(short, long)]
    json: bool,
    /// Protocols and ICMP types as numbers (addresses, ports and users always are)
    #[arg(short, long)]
    numeric: bool,
    /// Say more: how the rule was found, marks, conntrack's detail
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,
    /// No talk on stderr but errors
    #[arg(short, long)]
    quiet: bool,
    /// Colour: auto means on a terminal, unless NO_COLOR is set
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Color::Auto)]
    color: Color,
    /// Create this file when every source is attached
    #[arg(long, value_name = "PATH", hide = true)]
    ready_file: Option<PathBuf>,
    /// Use no better evidence than this
    #[arg(long, value_enum, hide = true, default_value_t = Ladder::Best)]
    evidence: Ladder,
}

#[derive(Debug, clap::Args)]
struct RulesArgs {
    #[command(flatten)]
    netns: NetnsArgs,
    /// Only this table
    #[arg(long, value_name = "[FAMILY ]TABLE", value_delimiter = ',', value_parser = values::table)]
    table: Vec<values::Table>,
    /// Only this chain
    #[arg(long, value_delimiter = ',')]
    chain: Vec<String>,
    /// Leave out counters and other state
    #[arg(short, long)]
    stateless: bool,
    /// One JSON object a line
    #[arg(short, long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Source {
    Ebpf,
    Nflog,
    Trace,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum HookArg {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    Ingress,
    Egress,
}

impl From<HookArg> for Hook {
    fn from(arg: HookArg) -> Self {
        match arg {
            HookArg::Prerouting => Self::Prerouting,
            HookArg::Input => Self::Input,
            HookArg::Forward => Self::Forward,
            HookArg::Output => Self::Output,
            HookArg::Postrouting => Self::Postrouting,
            HookArg::Ingress => Self::Ingress,
            HookArg::Egress => Self::Egress,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

impl Args {
    /// Checks what only the machine can tell, and makes the plan.
    pub(super) fn plan(self) -> Result<Plan, Error> {
        match self.command {
            None => self.live.plan(),
            Some(Command::Extcap(args)) => match args.plan()? {
                Extcap::Answer(question) => Ok(Plan::Extcap(question)),
                Extcap::Check(expression) => {
                    compile(&expression).map(|_| Plan::Extcap(Question::IsFilterRight))
                }
                Extcap::Capture(line) => Self::try_parse_from(line)?.plan(),
            },
            Some(Command::Rules(args)) => Ok(Plan::Rules(Rules {
                watch: args.netns.watch()?,
                tables: args.table,
                chains: args.chain,
                stateless: args.stateless,
                json: args.json,
            })),
            Some(Command::Features { json }) => Ok(Plan::Features(Features { json })),
            Some(Command::Demo { name, list, json }) => Ok(Plan::Demo(Demo {
                scenes: scenes(name.as_deref())?,
                list,
                json,
            })),
        }
    }
}

/// The demo's scene of that name, or all of them.
fn scenes(name: Option<&str>) -> Result<Vec<&'static Scene>, Error> {
    demo::select(name).map_err(|names| {
        let name = name.unwrap_or_default();
        Error::usage(format!(
            "no scene '{name}'; the scenes are {}",
            names.join(", ")
        ))
    })
}

/// Has libpcap compile an expression.
fn compile(text: &str) -> Result<Expression, Error> {
    Expression::compile(text).map_err(|err| match err {
        // A command that is misspelt ends here.
        expr::Error::Refused { .. } if text.chars().all(|c| c.is_ascii_alphanumeric()) => {
            Error::usage(format!("{err}, and `fwtrace --help` the commands"))
        }
        expr::Error::Refused { .. } => Error::usage(err.to_string()),
        expr::Error::NoLibpcap(_) => Error::Lacking(err.to_string()),
    })
}

impl LiveArgs {
    /// What `--source` leaves of eBPF, of the NFLOG groups, and of the kernel's trace.
    fn sources(&self) -> Result<(Ebpf, Groups, Option<u32>), Error> {
        let has = |source| self.source.contains(&source);
        if self.source.is_empty() {
            return Ok((Ebpf::May, self.nflog.clone(), self.trace));
        }
        if !has(Source::Nflog) && self.nflog != Groups::Auto && self.nflog != Groups::NONE {
            return Err(Error::usage(
                "--nflog names groups that --source leaves out; add nflog to --source, or leave --nflog out",
            ));
        }
        if has(Source::Nflog) && self.nflog == Groups::NONE {
            return Err(Error::usage(
                "--nflog none and --source nflog contradict each other; leave one out",
            ));
        }
        let nflog = match has(Source::Nflog) {
            true => self.nflog.clone(),
            false => Groups::NONE,
        };
        /// What `--trace` without a rate stands for.
        const RATE: u32 = 20;
        let trace = self.trace.or(has(Source::Trace).then_some(RATE));
        if has(Source::Ebpf) {
            return Ok((Ebpf::Must, nflog, trace));
        }
        let needs = [
            (trace.is_some(), "the kernel's trace"),
            (self.capture.writes(), "-w"),
            (!self.reason.is_empty(), "--reason"),
        ];
        if let Some((_, what)) = needs.iter().find(|(asked, _)| *asked) {
            return Err(Error::usage(format!(
                "{what} is about drops that eBPF sees, and --source leaves it out; add ebpf to --source"
            )));
        }
        Ok((Ebpf::Off, nflog, trace))
    }

    fn plan(mut self) -> Result<Plan, Error> {
        let expression = match self.expression.as_slice() {
            [] => None,
            words => Some(compile(&words.join(" "))?),
        };
        if let Some(expression) = expression.as_ref().filter(|_| self.explain_expression) {
            let mut filter = self.filter(self.iface.clone())?;
            let pushed = push::push(expression.text(), &mut filter);
            return Ok(Plan::Expressed(Expressed {
                expression: expression.clone(),
                kernel: pushed.kernel,
                rest: pushed.rest,
            }));
        }
        match self.capture.read() {
            Some(path) => Ok(Plan::Replay(Box::new(self.replay(path, expression)?))),
            None => Ok(Plan::Live(Box::new(self.live(expression)?))),
        }
    }

    /// Interfaces are those of the capture, whatever this machine has.
    fn replay(self, path: PathBuf, expression: Option<Expression>) -> Result<Replay, Error> {
        let filter = self.filter(self.iface.clone())?;
        let asked = self.format();
        Ok(Replay {
            path,
            filter: (filter != Filter::default()).then_some(filter),
            expression,
            count: self.count,
            output: self.output(asked, false),
        })
    }

    fn filter(&self, ifaces: Vec<String>) -> Result<Filter, Error> {
        let ports = [
            (&self.port, Side::Any),
            (&self.sport, Side::Src),
            (&self.dport, Side::Dst),
        ];
        let prefixes = [
            (&self.host, Side::Any),
            (&self.src, Side::Src),
            (&self.dst, Side::Dst),
        ];
        let filter = Filter {
            ports: ports
                .into_iter()
                .flat_map(|(ports, side)| ports.iter().map(move |p| PortMatch::new(*p, side)))
                .collect(),
            prefixes: prefixes
                .into_iter()
                .flat_map(|(prefixes, side)| {
                    prefixes.iter().map(move |p| PrefixMatch::new(*p, side))
                })
                .collect(),
            proto: self.proto,
            ip_version: match (self.ipv4, self.ipv6) {
                (true, _) => Some(4),
                (_, true) => Some(6),
                _ => None,
            },
            ifaces,
            hooks: self.hook.iter().copied().map(Hook::from).collect(),
            tables: self.table.clone(),
            chains: self.chain.clone(),
            reasons: Reasons::new(&self.reason),
        };
        filter.check()?;
        Ok(filter)
    }

    fn live(self, expression: Option<Expression>) -> Result<Live, Error> {
        let (ebpf, nflog, trace) = self.sources()?;
        let watch = self.netns.watch()?;
        let mut filter = self.filter(watch.interfaces(&self.iface)?)?;
        if let Some(expression) = &expression {
            push::push(expression.text(), &mut filter);
        }
        if trace.is_some()
            && !filter.hooks.is_empty()
            && filter.hooks.iter().all(|hook| *hook == Hook::Ingress)
        {
            return Err(Error::usage(
                "--trace and --hook ingress contradict each other: packets are traced from prerouting and output on, and ingress comes before; leave one out",
            ));
        }
        let snaplen = self.capture.snaplen();
        let is_terminal = std::io::stdout().is_terminal();
        let mut output = self.output(self.format(), watch.several());
        let (write, format) = self
            .capture
            .plan(output.format, output.quiet, is_terminal)?;
        output.format = format;
        Ok(Live {
            filter,
            expression,
            watch,
            count: self.count,
            duration: self.duration,
            output,
            ready_file: self.ready_file,
            evidence: self.evidence,
            trace,
            snaplen,
            write,
            ebpf,
            nflog,
            nflog_buffer: self.nflog_buffer,
        })
    }

    fn format(&self) -> Format {
        if self.json {
            Format::Json
        } else {
            Format::Text
        }
    }

    fn output(&self, format: Format, show_netns: bool) -> Options {
        Options {
            format,
            color: match self.color {
                Color::Auto => anstream::ColorChoice::Auto,
                Color::Always => anstream::ColorChoice::Always,
                Color::Never => anstream::ColorChoice::Never,
            },
            verbosity: self.verbose,
            quiet: self.quiet,
            numeric: self.numeric,
            show_netns,
        }
    }
}
