//! `refrain import`.

use std::path::PathBuf;

use refrain_policies::import::{self, Options};
use refrain_policies::package::Dtype;

use super::{Outcome, say};

#[derive(clap::Args)]
pub(super) struct Args {
    /// A `.ckpt` of real-stanford/diffusion_policy, a LeRobot folder, or a `.safetensors` with `policy.toml` beside it.
    #[arg(required_unless_present = "supported")]
    checkpoint: Option<PathBuf>,
    /// Folder of the new policy package.
    #[arg(required_unless_present = "supported")]
    out: Option<PathBuf>,
    /// Print what can be imported and what is refused, and do nothing else.
    #[arg(long)]
    supported: bool,
    /// How weights are stored.
    #[arg(long, value_enum, default_value_t = DtypeName::F16)]
    dtype: DtypeName,
    /// Name of the policy; otherwise the checkpoint's file name.
    #[arg(long)]
    name: Option<String>,
    /// Rate at which actions follow each other, Hz; otherwise what the checkpoint says.
    #[arg(long, value_name = "HZ")]
    rate: Option<f64>,
    /// Licence of the weights, recorded in the package.
    #[arg(long)]
    license: Option<String>,
    /// Folder with the encoders of a policy that sees, as `policies/train/export_encoder.py` writes them; for LeRobot also
    /// with the text, by `policies/train/export_lerobot.py`.
    #[arg(long, value_name = "DIR")]
    encoder: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum DtypeName {
    F16,
    F32,
}

impl Args {
    pub(super) fn run(self) -> Outcome {
        let (false, Some(checkpoint), Some(out)) = (self.supported, &self.checkpoint, &self.out) else {
            say!("{}", import::supported().trim_end());
            return Ok(());
        };
        let options = Options {
            name: self.name,
            rate_hz: self.rate,
            dtype: match self.dtype {
                DtypeName::F16 => Dtype::F16,
                DtypeName::F32 => Dtype::F32,
            },
            license: self.license,
            encoders: self.encoder,
        };
        let package = if checkpoint.is_dir() {
            import::lerobot(checkpoint, &options)?
        } else if checkpoint.extension().is_some_and(|e| e == "safetensors") {
            import::safetensors(&checkpoint.with_file_name("policy.toml"), checkpoint, &options)?
        } else {
            import::checkpoint(checkpoint, &options)?
        };
        package.save(out)?;
        let (c, a) = (&package.config, &package.config.architecture);
        say!("{}: {} layers, width {}, {} heads", c.name, a.layers, a.width, a.heads);
        say!(
            "  {} x {} observations -> {} x {} actions at {} Hz",
            a.n_obs_steps,
            c.observation.size(),
            a.n_action_steps,
            c.action.size(),
            c.rate_hz
        );
        say!("  sampler {}, weights {} of {}", c.sampler.label(), c.provenance.weights, c.provenance.source);
        for note in &c.provenance.notes {
            say!("  note: {note}");
        }
        let (checkpoint, out) = (checkpoint.display(), out.display());
        let missing = package.missing_encoders();
        if missing.is_empty() {
            say!("written to {out}; try: refrain bench {out}");
        } else {
            say!("written to {out}, without its encoders: {}", missing.join(", "));
            say!(
                "where the policy was trained: python policies/train/export_encoder.py {checkpoint} ENCODERS"
            );
            say!("then here: refrain import {checkpoint} {out} --encoder ENCODERS");
        }
        Ok(())
    }
}
