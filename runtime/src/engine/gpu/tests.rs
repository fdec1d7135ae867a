//! The kernels' sources against the Rust that feeds them, and what joining saves; no device is needed.

use std::path::Path;

use naga::valid::{ValidationFlags, Validator};
use naga::{AddressSpace, StorageAccess, TypeInner};
use refrain_policies::package::Package;
use refrain_policies::plan::Plan;
use refrain_policies::sampler::SamplerKind;
use refrain_policies::schedule::Schedule;
use refrain_policies::schedule_file::ScheduleFile;

use super::adapter::Level;
use super::kernels::{Kernel, THREADS};
use super::program::Program;
use super::record::CAPABILITIES;
use super::weights::{Tile, Weights};
use super::{Precision, params};

/// A field of parameters: its name and its offset, bytes.
type Field = (&'static str, usize);

fn linear(tile: Tile, steps: usize, half: bool, norm: bool) -> Kernel {
    Kernel::Linear { tile, steps, vector: half, half, norm, activation: 2 }
}

/// Every row of the kernel table, with the fields of its parameters.
fn table() -> Vec<(Kernel, Vec<Field>)> {
    vec![
        (linear(Tile::of(768, 256), 4, true, true), params::Linear::fields()),
        (Kernel::Attention { keys: 16 }, params::Attention::fields()),
        (Kernel::Attend { heads: 4, keys: 16, depth: 64, half: true }, params::Attend::fields()),
        (Kernel::Cross { heads: 4, keys: 3, width: 256 }, params::Cross::fields()),
        (Kernel::Combine, params::Combine::fields()),
        (Kernel::Tokens { numbers: 2, width: 256 }, params::Tokens::fields()),
    ]
}

fn level(subgroups: Option<(u32, u32)>, workgroup_memory: u32) -> Level {
    Level {
        subgroups,
        f16: false,
        mappable: false,
        direct: false,
        pipeline_cache: false,
        timestamps: false,
        workgroup_memory,
        storage_binding: 128 << 20,
    }
}

fn parsed(source: &str) -> naga::Module {
    let module =
        naga::front::wgsl::parse_str(source).unwrap_or_else(|e| panic!("{}", e.emit_to_string(source)));
    Validator::new(ValidationFlags::all(), CAPABILITIES)
        .validate(&module)
        .unwrap_or_else(|e| panic!("{}", e.emit_to_string(source)));
    module
}

#[test]
fn every_kernel_parses_with_both_ways_to_sum() {
    for (kernel, _) in table() {
        for subgroups in [false, true] {
            let module = parsed(&kernel.source(subgroups));
            assert_eq!(module.entry_points.len(), 1, "{}", kernel.name());
            assert_eq!(module.entry_points[0].name, "main");
        }
    }
    parsed(include_str!("../shaders/probe.wgsl"));
}

#[test]
fn parameters_lie_where_the_kernels_read_them() {
    for (kernel, fields) in table() {
        let module = parsed(&kernel.source(false));
        let (_, params) =
            module.types.iter().find(|(_, t)| t.name.as_deref() == Some("Params")).expect("a struct Params");
        let TypeInner::Struct { members, span } = &params.inner else { panic!("Params is no struct") };
        let declared: Vec<(&str, usize)> =
            members.iter().map(|m| (m.name.as_deref().unwrap_or(""), m.offset as usize)).collect();
        assert_eq!(declared, fields, "{}", kernel.name());
        assert_eq!((*span as usize).next_multiple_of(4), kernel.params(), "{}", kernel.name());
        assert!(kernel.params() <= params::SLOT);
    }
}

#[test]
fn bindings_are_those_of_the_layout() {
    for (kernel, _) in table() {
        let module = parsed(&kernel.source(false));
        let mut bound: Vec<(u32, u32, AddressSpace)> = module
            .global_variables
            .iter()
            .filter_map(|(_, v)| v.binding.as_ref().map(|b| (b.group, b.binding, v.space)))
            .collect();
        bound.sort_by_key(|b| (b.0, b.1));
        let read = AddressSpace::Storage { access: StorageAccess::LOAD };
        let write = AddressSpace::Storage { access: StorageAccess::LOAD | StorageAccess::STORE };
        assert_eq!(bound, [(0, 0, write), (0, 1, read), (0, 2, read), (0, 3, AddressSpace::Uniform)]);
    }
}

/// The size of workgroup memory after override constants took their values, bytes.
fn workgroup_memory(module: &naga::Module) -> usize {
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).expect("a layout");
    let of = |v: &naga::GlobalVariable| layouter[v.ty].size as usize;
    module
        .global_variables
        .iter()
        .filter(|(_, v)| v.space == AddressSpace::WorkGroup)
        .map(|(_, v)| of(v).next_multiple_of(16))
        .sum()
}

#[test]
fn workgroups_fit_the_level_they_were_chosen_for() {
    let downlevel = wgpu::Limits::downlevel_defaults();
    let levels = [
        level(None, downlevel.max_compute_workgroup_storage_size),
        level(None, 16 << 10),
        level(Some((4, 4)), 32 << 10),
        level(Some((8, 8)), 32 << 10),
        level(Some((32, 32)), 48 << 10),
        level(Some((8, 32)), 64 << 10),
        level(Some((64, 64)), 64 << 10),
    ];
    for level in levels {
        let mut kernels = vec![Kernel::Combine];
        for (rows, depth) in [(768, 256), (512, 128), (256, 256), (256, 20)] {
            for (half, norm) in [(false, false), (false, true), (true, false), (true, true)] {
                kernels.extend([1, 2, 4].map(|steps| linear(Tile::of(rows, depth), steps, half, norm)));
            }
        }
        kernels.extend([16, 128, 1024].map(|keys| Kernel::Attention { keys }));
        kernels.extend([true, false].map(|half| Kernel::Attend { heads: 8, keys: 16, depth: 32, half }));
        kernels.extend([20, 256, 1024].map(|width| Kernel::Cross { heads: 8, keys: 8, width }));
        for (numbers, width) in [(2, 256), (22, 20), (7, 4096), (300, 8192)] {
            kernels.push(Kernel::Tokens { numbers, width });
        }
        for kernel in kernels {
            let module = parsed(&kernel.source(kernel.subgroups(&level)));
            let info = Validator::new(ValidationFlags::all(), CAPABILITIES).validate(&module);
            let info = info.expect("a valid module");
            let constants =
                kernel.constants(&level).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            let (resolved, _) =
                naga::back::pipeline_constants::process_overrides(&module, &info, None, &constants)
                    .unwrap_or_else(|e| panic!("{kernel:?}: {e}"));
            let threads = resolved.entry_points[0].workgroup_size[0] as usize;
            assert!(
                threads <= THREADS && threads <= downlevel.max_compute_invocations_per_workgroup as usize
            );
            let bytes = workgroup_memory(&resolved);
            assert!(bytes <= level.workgroup_memory as usize, "{kernel:?}: {bytes} of {level}");
        }
    }
}

#[test]
fn every_weight_of_a_matrix_is_packed_once() {
    let package = shipped("pusht-small");
    for (rows, depth) in [(1, 1), (3, 20), (10, 130), (256, 256), (400, 129), (768, 40), (1024, 256)] {
        let mut weights = Weights::new(&package, Precision::Stored, 1 << 30);
        let flat: Vec<f32> = (0..rows * depth).map(|i| (i + 1) as f32).collect();
        let tile = Tile::of(rows, depth);
        let packed = weights.pack(&flat, rows, depth, tile, false).expect("a packed matrix");
        assert!(packed.eights.is_multiple_of(packed.steps) && tile.rows() >= 4, "{packed:?}");
        let numbers: &[f32] = bytemuck::cast_slice(&weights.shards[0]);
        let mut found: Vec<f32> = numbers.iter().copied().filter(|v| *v != 0.0).collect();
        found.sort_by(f32::total_cmp);
        assert_eq!(found, flat, "{rows} x {depth}");
    }
}

#[test]
fn large_matrices_are_spread_over_buffers() {
    let package = shipped("pusht-small");
    let mut weights = Weights::new(&package, Precision::Stored, 10_000);
    let tile = Tile { cols: 8, split: 16 };
    let first = weights.pack(&[1.0; 16 * 64], 16, 64, tile, false).expect("fits");
    let second = weights.pack(&[2.0; 16 * 128], 16, 128, tile, true).expect("fits");
    assert_eq!((first.shard, second.shard, weights.shards.len()), (0, 1, 2));
    assert!(weights.pack(&[0.0; 64 * 64], 64, 64, tile, false).is_err());
}

fn shipped(name: &str) -> Package {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies").join(name);
    Package::load(&root).expect("a shipped package")
}

fn dispatches(package: &Package, schedule: &Schedule) -> (usize, usize) {
    let plan = Plan::compile(&package.config, schedule).expect("a plan");
    let mut weights = Weights::new(package, Precision::Stored, 128 << 20);
    let program = Program::new(&plan, &mut weights, 256).expect("a program");
    (plan.cost().operations, program.infer.len())
}

/// What the base policy costs in dependent dispatches; each is 2 to 4 microseconds on a large GPU.
#[test]
fn the_base_policy_takes_so_many_dispatches() {
    let mut package = shipped("pusht");
    let a = package.config.architecture.clone();
    let full = dispatches(&package, &Schedule::full(&a, 100));
    let late = [0, 21, 39, 55, 68, 79, 88, 94, 98, 99];
    let late = dispatches(&package, &Schedule::aligned(&a, 100, &late).expect("a schedule"));
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/pusht/schedules/ddpm100_bac10_union3.toml");
    let file = ScheduleFile::parse(&std::fs::read_to_string(file).expect("a file")).expect("a schedule file");
    let schedule = file.check(&package.config, &package.weights_sha256()).expect("a schedule");
    let adaptive = dispatches(&package, &schedule);
    package.config.sampler = package.config.sampler.with(SamplerKind::Ddim, 10);
    let ddim = dispatches(&package, &Schedule::full(&a, 10));
    println!(
        "operations and dispatches: full {full:?}, late-dense {late:?}, BAC {adaptive:?}, DDIM-10 {ddim:?}"
    );
    assert!(full.1 <= 4200, "full: {full:?}");
}
