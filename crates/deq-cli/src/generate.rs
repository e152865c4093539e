//! `deq generate`.

use crate::args::GenerateArgs;
use crate::eval::print_json;
use anyhow::Result;
use deq_train::lm::{GenerateOptions, Sampling, generate};
use std::io::Write;

pub(crate) fn run(args: &GenerateArgs) -> Result<()> {
    let options = GenerateOptions {
        device: args.device.clone(),
        prompt: args.prompt.clone(),
        tokens: args.tokens,
        sampling: Sampling {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
        },
        unknown: args.unknown,
        seed: args.seed,
        max_steps: args.max_steps,
        compare_every: args.compare_every,
    };
    if args.json {
        return print_json(&generate(&args.run, &options, &mut |_| {})?);
    }
    let mut out = std::io::stdout();
    write!(out, "{}", args.prompt)?;
    // A closed pipe ends the command by the error of the last write.
    let mut written = Ok(());
    let result = generate(&args.run, &options, &mut |text| {
        if written.is_ok() {
            written = write!(out, "{text}").and_then(|()| out.flush());
        }
    })?;
    written?;
    writeln!(out)?;
    eprintln!(
        "\n{} tokens in {:.1} s, {:.1} evaluations of the layer for each",
        result.tokens, result.seconds, result.evaluations
    );
    if let Some([warm, cold]) = result.compared {
        eprintln!(
            "starting from the previous equilibrium saves {:.0} % of the evaluations: {warm:.1} in the place of {cold:.1} from zero",
            100.0 * (1.0 - warm / cold)
        );
    }
    Ok(())
}
