//! The `fwtrace` command: the command line to a plan, the plan to its part of the library, errors to words and exit codes.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use fwtrace::bpf::load::BpfError;
use fwtrace::cli::{self, Plan};
use fwtrace::demo;
use fwtrace::event::{ErrorEvent, Event};
use fwtrace::extcap;
use fwtrace::features;
use fwtrace::kernel::caps::CapsError;
use fwtrace::netlink::nftables::ReadError;
use fwtrace::netlink::socket::SocketError;
use fwtrace::output::{Format, error_text, listing};
use fwtrace::pipeline::{self, RunError, StartError};

/// Something went wrong while running.
const FAILED: u8 = 1;
/// The command line is wrong.
const USAGE: u8 = 2;
/// A permission is missing, or the kernel cannot do it.
const UNABLE: u8 = 3;
/// What the kernel's refusals mean.
const PERMISSION: &str =
    "; rulesets take CAP_NET_ADMIN, other network namespaces CAP_SYS_ADMIN: run it with sudo";

fn main() -> ExitCode {
    let plan = match cli::parse(std::env::args_os()) {
        Ok(plan) => plan,
        Err(err) => return failed(&err.into(), false),
    };
    log_to_stderr(&plan);
    let json = match &plan {
        Plan::Live(live) => live.output.format == Format::Json,
        Plan::Replay(replay) => replay.output.format == Format::Json,
        Plan::Rules(rules) => rules.json,
        Plan::Features(_) | Plan::Expressed(_) | Plan::Extcap(_) => false,
        Plan::Demo(demo) => demo.json,
    };
    match run(plan) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => failed(&err, json),
    }
}

fn run(plan: Plan) -> anyhow::Result<()> {
    match plan {
        Plan::Features(plan) => Ok(features::run(plan.json, &mut io::stdout().lock())?),
        Plan::Live(plan) => Ok(pipeline::run(*plan, || ())?),
        Plan::Replay(plan) => Ok(pipeline::replay(&plan)?),
        Plan::Demo(plan) => demo::run(&plan).map_err(|err| match err {
            // Known to exit_code() by themselves.
            demo::Error::Permission(err) => err.into(),
            demo::Error::Run(err) => err.into(),
            err => err.into(),
        }),
        Plan::Rules(plan) => Ok(listing::run(&plan)?),
        Plan::Extcap(question) => Ok(extcap::answer(question, &mut io::stdout().lock())?),
        Plan::Expressed(plan) => Ok(write!(io::stdout(), "{plan}")?),
    }
}

/// What the library has to say beside its results: RUST_LOG, else as -q and -v ask.
fn log_to_stderr(plan: &Plan) {
    let output = match plan {
        Plan::Live(live) => Some(&live.output),
        Plan::Replay(replay) => Some(&replay.output),
        _ => None,
    };
    let level = match output.map(|output| (output.quiet, output.verbosity)) {
        Some((true, _)) => log::LevelFilter::Error,
        Some((false, 0 | 1)) | None => log::LevelFilter::Warn,
        Some((false, 2)) => log::LevelFilter::Info,
        Some((false, _)) => log::LevelFilter::Debug,
    };
    env_logger::Builder::new()
        .filter_level(level)
        .parse_default_env()
        .format(|out, record| {
            let level = record.level().as_str().to_ascii_lowercase();
            writeln!(out, "fwtrace: {level}: {}", record.args())
        })
        .init();
}

/// Tells what went wrong, and says the exit code.
fn failed(err: &anyhow::Error, json: bool) -> ExitCode {
    let code = exit_code(err);
    match err.downcast_ref() {
        // clap colours its words, and sends help to stdout; a reader that is gone is none of ours.
        Some(cli::Error::Clap(clap)) => {
            let _ = clap.print();
        }
        _ if code == 0 => {}
        _ => {
            let mut message = error_text(err.as_ref());
            if code == UNABLE && is_refused(err) && !message.contains("CAP_") {
                message += PERMISSION;
            }
            let _ = writeln!(io::stderr(), "fwtrace: {message}");
            // A run that began and broke off; what never began has printed no data.
            if json && code == FAILED {
                let time = jiff::Timestamp::now();
                let _ = Event::Error(ErrorEvent { time, message }).write_json(io::stdout());
            }
        }
    }
    ExitCode::from(code)
}

/// 0: a reader that went away, or help; 1: runtime; 2: usage; 3: permission or kernel support.
fn exit_code(err: &anyhow::Error) -> u8 {
    for cause in err.chain() {
        let code = if let Some(RunError::Start(err)) = cause.downcast_ref() {
            match err {
                StartError::Usage(_) => USAGE,
                StartError::Thread(_) => FAILED,
                _ => UNABLE,
            }
        } else if let Some(err) = cause.downcast_ref::<cli::Error>() {
            match err {
                cli::Error::Clap(err) => u8::try_from(err.exit_code()).unwrap_or(USAGE),
                cli::Error::Usage(_) => USAGE,
                cli::Error::Permission(_) => UNABLE,
                cli::Error::Lacking(_) => FAILED,
            }
        } else if let Some(err) = cause.downcast_ref::<io::Error>() {
            match err.kind() {
                io::ErrorKind::BrokenPipe => 0,
                io::ErrorKind::PermissionDenied => UNABLE,
                _ => continue,
            }
        } else if is_refusal(cause) || cause.is::<CapsError>() {
            UNABLE
        } else if let Some(err) = cause.downcast_ref::<BpfError>() {
            match err {
                BpfError::Btf(_) | BpfError::Program { .. } => UNABLE,
                _ => continue,
            }
        } else {
            continue;
        };
        return code;
    }
    FAILED
}

/// Whether the kernel refused something for want of permission.
fn is_refused(err: &anyhow::Error) -> bool {
    err.chain().any(is_refusal)
}

fn is_refusal(cause: &(dyn Error + 'static)) -> bool {
    let errno = if let Some(err) = cause.downcast_ref::<io::Error>() {
        err.raw_os_error()
    } else if let Some(ReadError::Socket(err)) = cause.downcast_ref() {
        err.errno()
    } else {
        cause.downcast_ref().and_then(SocketError::errno)
    };
    matches!(errno, Some(libc::EPERM | libc::EACCES))
}
