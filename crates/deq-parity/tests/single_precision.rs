//! The recorded models in f32. A process has one float type, so this is a binary of its own.

use burn::tensor::Device;
use deq_parity::{MODELS, Outcome, Precision, check_in};
use deq_testkit::fixtures_of_kind;

#[test]
fn every_recorded_model_is_reproduced_in_f32() {
    let precision = Precision::f32(Device::flex());
    for kind in MODELS {
        for case in fixtures_of_kind(kind) {
            let Outcome::Checked(checks) = check_in(&case, &precision) else {
                panic!("{kind} must be covered");
            };
            for check in checks {
                assert!(check.passes(), "{}: {check:?}", case.name);
            }
        }
    }
}
