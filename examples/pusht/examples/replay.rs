//! Draws one episode of a simple hand-written pusher: `cargo run -p refrain-pusht --example replay -- SEED OUT.svg`.

use refrain_pusht::{Episode, MAX_STEPS, PushT};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let seed = arguments.next().map_or(Ok(0), |text| text.parse())?;
    let out = arguments.next().unwrap_or_else(|| "pusht.svg".into());
    let mut push_t = PushT::new(seed);
    let mut episode = Episode::start(&push_t);
    for i in 0..MAX_STEPS {
        let turn = i as f64 / 15.0;
        let reach = 200.0 * (1.0 - i as f64 / MAX_STEPS as f64);
        let target = [256.0 + reach * turn.cos(), 256.0 + reach * turn.sin()];
        let step = push_t.step(target);
        episode.push(target, step, &push_t);
    }
    episode.write_svg(&out, "A spiral towards the middle")?;
    println!("{out}: score {:.3}", episode.score());
    Ok(())
}
