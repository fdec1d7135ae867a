//! The adaptive caching scheduler against what the authors' scheduler gives (`shared/golden/README.md`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use refrain_policies::adaptive_caching::{
    BlockStatistics, Statistics, most_different, similarity_sum, update_table,
};
use refrain_policies::schedule::Block;
use safetensors::SafeTensors;
use serde::Deserialize;

/// Denoising steps of the recording.
const STEPS: usize = 100;

#[derive(Deserialize)]
struct Golden {
    blocks_by_mean_l1_difference: BTreeMap<String, f64>,
    schedules: BTreeMap<String, BTreeMap<String, Vec<usize>>>,
}

/// A file of the shared reference data; none, said loudly, where there is no such folder.
fn golden(name: &str) -> Option<Vec<u8>> {
    let shared = std::env::var_os("REFRAIN_SHARED").map(PathBuf::from);
    let shared =
        shared.unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")));
    let path = shared.join("golden").join(name);
    if !path.exists() {
        eprintln!("SKIPPED: {} is not here; REFRAIN_SHARED names its folder", path.display());
        return None;
    }
    Some(std::fs::read(&path).unwrap())
}

fn recorded() -> Option<(Statistics, Golden)> {
    let matrices = golden("bac_similarity_pusht.safetensors")?;
    let golden: Golden = serde_json::from_slice(&golden("bac_schedules_pusht.json")?).unwrap();
    let matrices = SafeTensors::deserialize(&matrices).unwrap();
    let mut blocks: Vec<BlockStatistics> = golden
        .blocks_by_mean_l1_difference
        .iter()
        .map(|(name, &mean_l1_difference)| {
            let tensor = matrices.tensor(&format!("similarity.{name}")).unwrap();
            assert_eq!(tensor.shape(), [STEPS, STEPS]);
            let number = |b: &[u8]| f64::from(f32::from_le_bytes(b.try_into().unwrap()));
            let similarity = tensor.data().chunks_exact(4).map(number).collect();
            BlockStatistics {
                block: name.parse().unwrap(),
                similarity,
                products: Vec::new(),
                mean_l1_difference,
            }
        })
        .collect();
    blocks.sort_by_key(|b| b.block);
    assert_eq!(blocks.len(), 24);
    Some((Statistics { steps: STEPS, blocks }, golden))
}

/// `updatesM_unionN` to M and N.
fn numbers(name: &str) -> (usize, usize) {
    let (updates, union) = name.strip_prefix("updates").and_then(|n| n.split_once("_union")).unwrap();
    (updates.parse().unwrap(), union.parse().unwrap())
}

#[test]
fn all_schedules_are_the_authors() {
    let Some((statistics, golden)) = recorded() else { return };
    assert_eq!(golden.schedules.len(), 18);
    for (name, expected) in &golden.schedules {
        let (updates, union) = numbers(name);
        let rows = update_table(&statistics, updates, union).unwrap();
        assert_eq!(rows.len(), expected.len());
        for (block, at) in rows {
            assert_eq!(at, expected[&block.to_string()], "{name} {block}");
        }
    }
}

/// Ties would leave a choice; here every one of the authors' schedules beats all its rivals.
#[test]
fn no_recorded_schedule_is_tied() {
    let Some((statistics, golden)) = recorded() else { return };
    for (name, rows) in golden.schedules.iter().filter(|(name, _)| name.ends_with("_union0")) {
        let (updates, _) = numbers(name);
        for block in &statistics.blocks {
            let value = similarity_sum(&block.similarity, STEPS, &rows[&block.block.to_string()]);
            let [best, second] = best_two(&block.similarity, updates);
            let told = format!("{name} {}: the authors' {value}, best {best}, second {second}", block.block);
            assert!((value - best).abs() <= 1e-9, "{told}");
            assert!(second < best - 1e-9, "{told}");
        }
    }
}

/// The two largest sums of similarities that schedules with `updates` update steps have; written differently from
/// the scheduler on purpose: forward, one step at a time.
fn best_two(similarity: &[f64], updates: usize) -> [f64; 2] {
    const NONE: [f64; 2] = [f64::NEG_INFINITY; 2];
    let merge = |[a, b]: [f64; 2], [c, d]: [f64; 2]| if a >= c { [a, b.max(c)] } else { [c, a.max(d)] };
    // open[m][u]: m updates so far, the last at u, all steps before the current one counted.
    let mut open = vec![[NONE; STEPS]; updates + 1];
    open[1][0][0] = 0.0;
    for step in 1..STEPS {
        for m in (1..=updates).rev() {
            let before = open[m - 1].iter().copied().fold(NONE, merge);
            for (last, sums) in open[m].iter_mut().enumerate().take(step) {
                sums.iter_mut().for_each(|sum| *sum += similarity[last * STEPS + step]);
            }
            open[m][step] = before;
        }
    }
    open[updates].iter().copied().fold(NONE, merge)
}

#[test]
fn most_different_blocks_are_the_recorded_ones() {
    let Some((statistics, _)) = recorded() else { return };
    let names: Vec<String> = most_different(&statistics, 5).unwrap().iter().map(Block::to_string).collect();
    let expected = ["layer0", "layer1", "layer4", "layer2", "layer5"].map(|l| format!("{l}.feed_forward"));
    assert_eq!(names, expected);
}
