//! The kernel table of the GPU: one row per kernel, with its source, its variants and its pipelines.

#![allow(unsafe_code, reason = "shader modules without run-time checks; see `Pipelines::pipeline`")]

use std::collections::HashMap;

use super::adapter::{Device, Level};
#[cfg(test)]
use super::params;
use super::weights::Tile;

/// What all kernels share.
const BINDINGS: &str = include_str!("../shaders/bindings.wgsl");
/// The two ways to sum across threads.
const SUM_SHARED: &str = include_str!("../shaders/sum_shared.wgsl");
const SUM_SUBGROUP: &str = include_str!("../shaders/sum_subgroup.wgsl");

/// Threads of a workgroup of most kernels; downlevel adapters offer no more.
pub(super) const THREADS: usize = 256;

/// A kernel and what is constant in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kernel {
    /// `linear.wgsl`, `cpu/linear.rs`.
    Linear {
        /// How the matrix is cut.
        tile: Tile,
        /// Eights that a lane fetches at once.
        steps: usize,
        /// Inputs lie on multiples of four.
        vector: bool,
        /// Weights are f16.
        half: bool,
        /// LayerNorm first.
        norm: bool,
        /// 0 none, 1 GELU, 2 Mish.
        activation: u32,
    },
    /// `attention.wgsl`, `cpu/attention.rs`.
    Attention {
        /// Keys, rounded up.
        keys: usize,
    },
    /// `attend.wgsl`: `attention` and `linear` of the CPU in one.
    Attend {
        /// Heads H.
        heads: usize,
        /// Keys S.
        keys: usize,
        /// Numbers per head.
        depth: usize,
        /// Weights are f16.
        half: bool,
    },
    /// `cross.wgsl`: `linear`, `attention` and `linear` of the CPU in one, see `fold`.
    Cross {
        /// Heads H.
        heads: usize,
        /// Keys S.
        keys: usize,
        /// Width D.
        width: usize,
    },
    /// `combine.wgsl`, `cpu/tokens.rs`.
    Combine,
    /// `tokens.wgsl`, `cpu/tokens.rs`: start, head, quiet and embed.
    Tokens {
        /// Denoised numbers N.
        numbers: usize,
        /// Width D.
        width: usize,
    },
}

impl Kernel {
    /// The kernel's name, that of its file and of its twin.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Linear { .. } => "linear",
            Self::Attention { .. } => "attention",
            Self::Attend { .. } => "attend",
            Self::Cross { .. } => "cross",
            Self::Combine => "combine",
            Self::Tokens { .. } => "tokens",
        }
    }

    /// The kernel's own file.
    pub(super) fn body(&self) -> &'static str {
        match self {
            Self::Linear { .. } => include_str!("../shaders/linear.wgsl"),
            Self::Attention { .. } => include_str!("../shaders/attention.wgsl"),
            Self::Attend { .. } => include_str!("../shaders/attend.wgsl"),
            Self::Cross { .. } => include_str!("../shaders/cross.wgsl"),
            Self::Combine => include_str!("../shaders/combine.wgsl"),
            Self::Tokens { .. } => include_str!("../shaders/tokens.wgsl"),
        }
    }

    /// Bytes of the kernel's parameters.
    #[cfg(test)]
    pub(super) fn params(&self) -> usize {
        match self {
            Self::Linear { .. } => size_of::<params::Linear>(),
            Self::Attention { .. } => size_of::<params::Attention>(),
            Self::Attend { .. } => size_of::<params::Attend>(),
            Self::Cross { .. } => size_of::<params::Cross>(),
            Self::Combine => size_of::<params::Combine>(),
            Self::Tokens { .. } => size_of::<params::Tokens>(),
        }
    }

    /// Whether sums go through subgroups: all lanes that share a sum must lie in one.
    pub(super) fn subgroups(&self, level: &Level) -> bool {
        let (low, high) = level.subgroups.unwrap_or_default();
        match self {
            Self::Linear { tile, .. } => low as usize >= tile.split,
            Self::Attention { .. } => low >= 8,
            Self::Attend { .. } | Self::Cross { .. } => low >= 32,
            Self::Combine => false,
            Self::Tokens { .. } => low >= 16 && low == high && high <= 64,
        }
    }

    fn threads(&self, level: &Level) -> usize {
        match self {
            Self::Linear { .. } | Self::Attend { .. } | Self::Cross { .. } | Self::Combine => THREADS,
            Self::Attention { .. } => 128,
            Self::Tokens { .. } if self.subgroups(level) => level.subgroups.unwrap_or_default().0 as usize,
            Self::Tokens { .. } => 64,
        }
    }

    /// Values of the kernel's override constants.
    pub(super) fn constants(&self, level: &Level) -> Vec<(&'static str, f64)> {
        let mut constants = vec![("SIZE", self.threads(level) as f64)];
        let flag = |yes| f64::from(u8::from(yes));
        match *self {
            Self::Linear { tile, steps, vector, half, norm, activation } => constants.extend([
                ("COLS", tile.cols as f64),
                ("SPLIT", tile.split as f64),
                ("STEPS", steps as f64),
                ("VECTOR", flag(vector)),
                ("HALF", flag(half)),
                ("NORM", flag(norm)),
                ("ACTIVATION", f64::from(activation)),
            ]),
            Self::Attention { keys } => constants.push(("KEYS", keys as f64)),
            Self::Attend { heads, keys, depth, half } => constants.extend([
                ("HEADS", heads as f64),
                ("KEYS", keys as f64),
                ("DEPTH", depth as f64),
                ("PAIRS", (heads * keys) as f64),
                ("SHARES", (heads * 16) as f64),
                ("HALF", flag(half)),
            ]),
            Self::Cross { heads, keys, width } => constants.extend([
                ("HEADS", heads as f64),
                ("KEYS", keys as f64),
                ("SLOTS", (heads * keys) as f64),
                ("WIDTH", width as f64),
            ]),
            Self::Combine => {}
            Self::Tokens { numbers, width } => {
                let room = level.workgroup_memory as usize / 4;
                let hold = width + 2 * numbers + 4 * self.threads(level) + 64 <= room;
                constants.extend([
                    ("NUMBERS", numbers as f64),
                    ("WIDTH", width as f64),
                    ("HOLD", flag(hold)),
                    ("HELD", if hold { width as f64 } else { 1.0 }),
                ]);
                if self.subgroups(level) {
                    constants.push(("ALONE", 1.0));
                }
            }
        }
        constants
    }

    /// The module's source: sums, bindings and the kernel, one whole file after the other.
    pub(super) fn source(&self, subgroups: bool) -> String {
        [if subgroups { SUM_SUBGROUP } else { SUM_SHARED }, BINDINGS, self.body()].join("\n")
    }
}

/// The arena, matrices, numbers, and an entry of the table of parameters: `bindings.wgsl`.
pub(super) fn layout_entries(slot: usize) -> [wgpu::BindGroupLayoutEntry; 4] {
    let storage = |binding, read_only| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    };
    let table = wgpu::BindGroupLayoutEntry {
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Uniform,
            has_dynamic_offset: true,
            min_binding_size: wgpu::BufferSize::new(slot as u64),
        },
        ..storage(3, true)
    };
    [storage(0, false), storage(1, true), storage(2, true), table]
}

/// Pipelines by kernel, made once through wgpu.
pub(super) struct Pipelines {
    pub(super) bindings: wgpu::BindGroupLayout,
    layout: wgpu::PipelineLayout,
    modules: HashMap<(&'static str, bool), wgpu::ShaderModule>,
    made: Vec<(Kernel, wgpu::ComputePipeline)>,
}

impl Pipelines {
    pub(super) fn new(device: &wgpu::Device, slot: usize) -> Self {
        let bindings = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("refrain"),
            entries: &layout_entries(slot),
        });
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some("refrain"),
            bind_group_layouts: &[Some(&bindings)],
            ..wgpu::PipelineLayoutDescriptor::default()
        });
        Self { bindings, layout, modules: HashMap::new(), made: Vec::new() }
    }

    /// Index of a kernel's pipeline, which is made if need be.
    pub(super) fn index(&mut self, device: &Device, kernel: Kernel) -> usize {
        if let Some(found) = self.made.iter().position(|(k, _)| *k == kernel) {
            return found;
        }
        let level = &device.summary.level;
        let subgroups = kernel.subgroups(level);
        let module = self.modules.entry((kernel.name(), subgroups)).or_insert_with(|| {
            let descriptor = wgpu::ShaderModuleDescriptor {
                label: Some(kernel.name()),
                source: wgpu::ShaderSource::Wgsl(kernel.source(subgroups).into()),
            };
            // SAFETY: the sources are this crate's own. Every index comes from a place that `program` checked to
            // lie inside its buffer, every loop is bounded by such a size, and no divisor is zero.
            unsafe {
                device.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
            }
        });
        let pipeline = device.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name()),
            layout: Some(&self.layout),
            module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &kernel.constants(level),
                // Every kernel writes its workgroup memory before it reads it.
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        self.made.push((kernel, pipeline));
        self.made.len() - 1
    }

    pub(super) fn get(&self, index: usize) -> &wgpu::ComputePipeline {
        &self.made[index].1
    }
}
