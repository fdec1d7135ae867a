//! The command line: arguments in, short answers out. What a command does lives elsewhere; this is its face.

mod bench;
mod calibrate;
mod check;
#[cfg(feature = "pusht")]
mod demo;
mod doctor;
#[cfg(feature = "pusht")]
mod evaluate;
mod forecasts;
mod import;
mod infer;
#[cfg(feature = "pusht")]
mod jitter;
mod npz;
mod plan;
mod progress;
mod recorded;
mod replay;
#[cfg(feature = "pusht")]
mod report;
mod run;
mod rungs;
#[cfg(feature = "pusht")]
mod seams;
mod search;
mod selection;
#[cfg(feature = "pusht")]
mod sight;
#[cfg(feature = "pusht")]
mod soak;
mod stages;
mod statistics;
mod tensors;
mod top;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What a command ends with: an error that names what was wrong and what to do.
type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Runs transformer Diffusion Policies on robots: fast, in time, without Python.
#[derive(Parser)]
#[command(name = "refrain", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Watch a policy push the T, over the bus; needs no file.
    #[cfg(feature = "pusht")]
    Demo(demo::Args),
    /// Run a robot: the embedded daemon.
    Run(run::Args),
    /// Explain a robot's configuration and find what does not fit, before anything moves.
    Check(check::Args),
    /// Run the demo over and over in real time, and fail if memory grows.
    #[cfg(feature = "pusht")]
    Soak(soak::Args),
    /// Watch a running daemon on one screen.
    Top(top::Args),
    /// Compute a recorded run again and compare it byte by byte.
    Replay(replay::Args),
    /// Turn a PyTorch checkpoint into a policy package, without Python.
    Import(import::Args),
    /// Predict action chunks for observations in a file.
    Infer(infer::Args),
    /// Show what a policy and a schedule compile to, and draw it.
    Plan(plan::Args),
    /// Make a cache schedule from recorded observations.
    Calibrate(calibrate::Args),
    /// Find the best schedule for a deadline or a budget, from recorded observations.
    Search(search::Args),
    /// Compare the published forecasts on a schedule's update steps.
    Forecasts(forecasts::Args),
    /// Time a policy on this machine, beside the floor that the machine sets; or measure how chunks join.
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Bench(Benches),
    /// Show what this machine offers, what is chosen and why, and test every engine.
    Doctor(doctor::Args),
    /// Score a policy over many episodes.
    #[cfg(feature = "pusht")]
    Eval(evaluate::Args),
    /// Compare schedules with the full policy and with DDIM at equal computations; writes one page.
    #[cfg(feature = "pusht")]
    Report(report::Args),
}

#[derive(clap::Args)]
struct Benches {
    #[command(subcommand)]
    other: Option<Bench>,
    #[command(flatten)]
    policy: bench::Args,
}

/// Benchmarks of something else than a policy's time.
#[derive(Subcommand)]
enum Bench {
    /// Jump, jerk and score where one chunk follows another, per way of joining and added inference delay.
    #[cfg(feature = "pusht")]
    Seams(seams::Args),
    /// From an image published to the first action that it led to, over zenoh.
    #[cfg(feature = "pusht")]
    Sight(sight::Args),
    /// How late the control loop wakes, beside cyclictest.
    #[cfg(feature = "pusht")]
    Loop(jitter::Args),
}

impl Benches {
    fn run(self) -> Outcome {
        match self.other {
            #[cfg(feature = "pusht")]
            Some(Bench::Seams(args)) => args.run(),
            #[cfg(feature = "pusht")]
            Some(Bench::Sight(args)) => args.run(),
            #[cfg(feature = "pusht")]
            Some(Bench::Loop(args)) => args.run(),
            None => self.policy.run(),
        }
    }
}

/// Prints a line; a reader that has gone away ends the program quietly.
macro_rules! say {
    ($($arg:tt)*) => { $crate::cli::print_line(format_args!($($arg)*)) };
}
use say;

fn print_line(line: std::fmt::Arguments<'_>) {
    use std::io::Write;
    if writeln!(std::io::stdout(), "{line}").is_err() {
        std::process::exit(0);
    }
}

/// Parses the process's arguments, runs the command, and prints an error as one short line with its causes.
pub fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("REFRAIN_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,zenoh=error")),
        )
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    let outcome = match Cli::parse().command {
        Command::Import(args) => args.run(),
        Command::Infer(args) => args.run(),
        Command::Plan(args) => args.run(),
        Command::Calibrate(args) => args.run(),
        Command::Search(args) => args.run(),
        Command::Forecasts(args) => args.run(),
        Command::Bench(args) => args.run(),
        Command::Doctor(args) => args.run(),
        Command::Run(args) => args.run(),
        Command::Check(args) => args.run(),
        Command::Replay(args) => args.run(),
        Command::Top(args) => args.run(),
        #[cfg(feature = "pusht")]
        Command::Soak(args) => args.run(),
        #[cfg(feature = "pusht")]
        Command::Demo(args) => args.run(),
        #[cfg(feature = "pusht")]
        Command::Eval(args) => args.run(),
        #[cfg(feature = "pusht")]
        Command::Report(args) => args.run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = error.source();
            while let Some(inner) = cause {
                eprintln!("  because: {inner}");
                cause = inner.source();
            }
            ExitCode::FAILURE
        }
    }
}
