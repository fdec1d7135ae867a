use proptest::prelude::*;

use super::*;

fn block(layer: usize, kind: BlockKind) -> Block {
    Block { layer, kind }
}

fn one(similarity: Vec<f64>) -> BlockStatistics {
    BlockStatistics {
        block: block(0, BlockKind::FeedForward),
        similarity,
        products: Vec::new(),
        mean_l1_difference: 0.5,
    }
}

/// Every set of `updates` steps with step 0 in it; the largest sum of similarities.
fn brute_force(similarity: &[f64], steps: usize, updates: usize) -> f64 {
    (0..1_u32 << steps)
        .filter(|set| set & 1 == 1 && set.count_ones() as usize == updates)
        .map(|set| {
            let at: Vec<usize> = (0..steps).filter(|step| set >> step & 1 == 1).collect();
            similarity_sum(similarity, steps, &at)
        })
        .fold(f64::NEG_INFINITY, f64::max)
}

fn statistics(steps: usize, differences: &[f64]) -> Statistics {
    let kinds = [BlockKind::SelfAttention, BlockKind::CrossAttention, BlockKind::FeedForward];
    let blocks = differences.iter().enumerate().map(|(i, &mean_l1_difference)| BlockStatistics {
        block: block(i / 3, kinds[i % 3]),
        similarity: (0..steps * steps).map(|s| ((s * 37 + i * 101) % 89) as f64 / 89.0).collect(),
        products: Vec::new(),
        mean_l1_difference,
    });
    Statistics { steps, blocks: blocks.collect() }
}

prop_compose! {
    fn matrices()(steps in 1_usize..10)(
        steps in Just(steps),
        updates in 1..=steps,
        similarity in prop::collection::vec(-1.0..1.0_f64, steps * steps),
    ) -> (usize, usize, Vec<f64>) {
        (steps, updates, similarity)
    }
}

proptest! {
    #[test]
    fn finds_what_brute_force_finds((steps, updates, similarity) in matrices()) {
        let at = update_steps(&one(similarity.clone()), steps, updates).unwrap();
        prop_assert_eq!(at.len(), updates);
        prop_assert_eq!(at[0], 0);
        prop_assert!(at.windows(2).all(|w| w[0] < w[1]) && at[updates - 1] < steps);
        let (found, best) = (similarity_sum(&similarity, steps, &at), brute_force(&similarity, steps, updates));
        prop_assert!((found - best).abs() <= 1e-12, "{} is not {}", found, best);
    }

    /// Where an update step counts as similarity 1, the largest there is.
    #[test]
    fn more_updates_are_never_worse((steps, _, similarity) in matrices()) {
        let mut last = f64::NEG_INFINITY;
        for updates in 1..=steps {
            let at = update_steps(&one(similarity.clone()), steps, updates).unwrap();
            let value = similarity_sum(&similarity, steps, &at) + updates as f64;
            prop_assert!(value >= last - 1e-12, "{} updates: {} after {}", updates, value, last);
            last = value;
        }
    }

    #[test]
    fn union_only_adds(
        differences in prop::collection::vec(0.0..1.0_f64, 1..12),
        steps in 2_usize..12,
        updates in 1_usize..4,
        union in 0_usize..12,
    ) {
        let (updates, union) = (updates.min(steps), union.min(differences.len()));
        let measured = statistics(steps, &differences);
        let before = update_table(&measured, updates, 0).unwrap();
        let after = update_table(&measured, updates, union).unwrap();
        let chosen = most_different(&measured, union).unwrap();
        for ((b, old), (_, new)) in before.iter().zip(&after) {
            prop_assert!(old.iter().all(|step| new.contains(step)));
            prop_assert!(chosen.contains(b) || old == new);
            prop_assert!(new.windows(2).all(|w| w[0] < w[1]));
            for (f, steps) in &before {
                let passed_on = f.kind == BlockKind::FeedForward && f.layer >= b.layer && chosen.contains(b);
                prop_assert!(!passed_on || steps.iter().all(|step| new.contains(step)));
            }
        }
        let mut again = after.clone();
        bubbling_union(&mut again, &chosen);
        prop_assert_eq!(again, after, "a second union adds nothing");
    }
}

#[test]
fn equal_sums_go_to_the_earliest_last_update() {
    assert_eq!(update_steps(&one(vec![1.0; 25]), 5, 3).unwrap(), [0, 1, 2]);
    assert_eq!(update_steps(&one(vec![1.0; 25]), 5, 5).unwrap(), [0, 1, 2, 3, 4]);
    assert_eq!(update_steps(&one(vec![1.0; 25]), 5, 1).unwrap(), [0]);
}

#[test]
fn equal_differences_go_to_the_earlier_block() {
    let measured = statistics(4, &[0.5, 0.7, 0.5, 0.5]);
    let names: Vec<String> = most_different(&measured, 3).unwrap().iter().map(Block::to_string).collect();
    assert_eq!(names, ["layer0.cross_attention", "layer0.self_attention", "layer0.feed_forward"]);
}

#[test]
fn union_takes_own_and_later_feed_forwards_only() {
    let mut rows: Vec<(Block, Vec<usize>)> = (0..3)
        .flat_map(|l| {
            [
                (block(l, BlockKind::SelfAttention), vec![0, 9]),
                (block(l, BlockKind::FeedForward), vec![0, l + 1]),
            ]
        })
        .collect();
    bubbling_union(&mut rows, &[block(1, BlockKind::SelfAttention), block(0, BlockKind::FeedForward)]);
    let at: Vec<&[usize]> = rows.iter().map(|(_, at)| &at[..]).collect();
    assert_eq!(at, [&[0, 9][..], &[0, 1, 2, 3], &[0, 2, 3, 9], &[0, 2], &[0, 9], &[0, 3]]);
}

fn message(measured: &Statistics, updates: usize, union: usize) -> String {
    update_table(measured, updates, union).unwrap_err().to_string()
}

#[test]
fn bad_input_is_named() {
    let good = statistics(4, &[0.1, 0.2, 0.3]);
    assert!(update_table(&good, 4, 3).is_ok());
    assert_eq!(message(&good, 0, 0), "0 updates per block: expected 1 to 4, the number of denoising steps");
    assert_eq!(message(&good, 5, 0), "5 updates per block: expected 1 to 4, the number of denoising steps");
    assert_eq!(message(&good, 2, 4), "union over 4 blocks: expected 0 to 3, the number of blocks");

    let mut bad = good.clone();
    bad.blocks[1].similarity.pop();
    assert_eq!(
        message(&bad, 2, 0),
        "similarity of block layer0.cross_attention: expected 4 x 4 numbers, got 15; calibrate again"
    );
    let mut bad = good.clone();
    bad.blocks[2].similarity[7] = f64::NAN;
    assert!(
        message(&bad, 2, 0)
            .starts_with("similarity of block layer0.feed_forward between steps 1 and 3: expected")
    );
    for value in [f64::NAN, f64::INFINITY, -0.1] {
        let mut bad = good.clone();
        bad.blocks[0].mean_l1_difference = value;
        assert!(
            message(&bad, 2, 0).starts_with("mean l1 difference of block layer0.self_attention: expected")
        );
    }
    let none = Statistics { steps: 0, blocks: good.blocks };
    assert_eq!(message(&none, 1, 0), "1 updates per block: expected 1 to 0, the number of denoising steps");
}
