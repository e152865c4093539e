//! Devices and measures by name.

use deq_train::{Measure, device};

#[test]
fn a_device_that_is_not_there_is_named_with_what_would_be_right() {
    assert!(device("flex").is_ok());
    let message = device("tpu").unwrap_err().to_string();
    assert_eq!(
        message,
        "there is no device \"tpu\": choose one of flex, wgpu, vulkan, metal, cuda, rocm, cpu; \
         flex is the CPU"
    );
    assert!(device("flex:1").is_err());
    assert!(device("cuda:x").is_err());
    #[cfg(not(feature = "rocm"))]
    assert_eq!(
        device("rocm:1").unwrap_err().to_string(),
        "the device rocm:1 is not compiled in (there is: flex): \
         build with the cargo feature rocm"
    );
}

#[test]
fn shares_are_compared_by_differences_and_other_measures_by_ratios() {
    let accuracy = Measure::share("accuracy");
    assert!((accuracy.best(&[0.4, 0.7, 0.6]) - 0.7).abs() < 1e-12);
    assert!((accuracy.loss(0.6, 0.7) - 0.1).abs() < 1e-12);
    assert_eq!(accuracy.text(0.9744), "97.44 %");
    let error = Measure::error("rms error");
    assert!((error.best(&[0.4, 0.2]) - 0.2).abs() < 1e-12);
    assert!((error.loss(0.4, 0.2) - 2.0).abs() < 1e-12);
    assert_eq!(Measure::Perplexity.text(7.336), "7.34");
}
