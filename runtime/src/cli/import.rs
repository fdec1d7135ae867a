//! `refrain import`.

use std::path::PathBuf;

use refrain_policies::import::{self, Options};
use refrain_policies::package::Dtype;

use super::{Outcome, say};

#[derive(clap::Args)]
pub(super) struct Args {
    /// A `.ckpt` of real-stanford/diffusion_policy, or a `.safetensors` with `policy.toml` beside it.
    checkpoint: PathBuf,
    /// Folder of the new policy package.
    out: PathBuf,
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
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum DtypeName {
    F16,
    F32,
}

impl Args {
    pub(super) fn run(self) -> Outcome {
        let options = Options {
            name: self.name,
            rate_hz: self.rate,
            dtype: match self.dtype {
                DtypeName::F16 => Dtype::F16,
                DtypeName::F32 => Dtype::F32,
            },
            license: self.license,
        };
        let package = if self.checkpoint.extension().is_some_and(|e| e == "safetensors") {
            import::safetensors(&self.checkpoint.with_file_name("policy.toml"), &self.checkpoint, &options)?
        } else {
            import::checkpoint(&self.checkpoint, &options)?
        };
        package.save(&self.out)?;
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
        say!("written to {}; try: refrain bench {}", self.out.display(), self.out.display());
        Ok(())
    }
}
