//! The ROS 2 interfaces that Refrain speaks: names and type hashes.
//!
//! A hash is the RIHS01 of REP 2016. These are the same in Jazzy, Kilted and Lyrical; rosbags
//! computes them anew from the messages' definitions (`tests/interop/hashes.py`), and so does hiroz-codegen in the test below.

/// A message or service type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Package.
    pub package: &'static str,
    /// `msg` or `srv`.
    pub family: &'static str,
    /// Name in its package.
    pub name: &'static str,
    /// RIHS01, 64 hexadecimal digits.
    pub hash: &'static str,
    /// Whether it has an unbounded array of bytes: from Lyrical on such messages travel on a key of their own.
    pub bulky: bool,
}

macro_rules! interfaces {
    ($($(#[$doc:meta])* $constant:ident = $package:literal $family:literal $name:literal $hash:literal $($bulky:ident)?;)*) => {
        $($(#[$doc])*
        pub const $constant: Interface = Interface {
            package: $package,
            family: $family,
            name: $name,
            hash: $hash,
            bulky: interfaces!(@bulky $($bulky)?),
        };)*

        /// All of them.
        pub const ALL: &[Interface] = &[$($constant),*];
    };
    (@bulky bulky) => { true };
    (@bulky) => { false };
}

interfaces! {
    /// Nothing: a signal.
    EMPTY = "std_msgs" "msg" "Empty"
        "20b625256f32d5dbc0d04fee44f43c41e51c70d3502f84b4a08e7a9c26a96312";
    /// A text.
    STRING = "std_msgs" "msg" "String"
        "df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18";
    /// Numbers.
    FLOAT64_MULTI_ARRAY = "std_msgs" "msg" "Float64MultiArray"
        "1025ddc6b9552d191f89ef1a8d2f60f3d373e28b283d8891ddcc974e8c55397f";
    /// Joints by name.
    JOINT_STATE = "sensor_msgs" "msg" "JointState"
        "a13ee3a330e346c9d87b5aa18d24e11690752bd33a0350f11c5882bc9179260e";
    /// An inertial measurement unit.
    IMU = "sensor_msgs" "msg" "Imu"
        "7d9a00ff131080897a5ec7e26e315954b8eae3353c3f995c55faf71574000b5b";
    /// A raw image.
    IMAGE = "sensor_msgs" "msg" "Image"
        "d31d41a9a4c4bc8eae9be757b0beed306564f7526c88ea6a4588fb9582527d47" bulky;
    /// A JPEG or PNG.
    COMPRESSED_IMAGE = "sensor_msgs" "msg" "CompressedImage"
        "15640771531571185e2efc8a100baf923961a4d15d5569652e6cb6691e8e371a" bulky;
    /// A pose in a frame.
    POSE_STAMPED = "geometry_msgs" "msg" "PoseStamped"
        "10f3786d7d40fd2b54367835614bff85d4ad3b5dab62bf8bca0cc232d73b4cd8";
    /// A velocity in a frame.
    TWIST_STAMPED = "geometry_msgs" "msg" "TwistStamped"
        "5f0fcd4f81d5d06ad9b4c4c63e3ea51b82d6ae4d0558f1d475229b1121db6f64";
    /// What joint_trajectory_controller takes.
    JOINT_TRAJECTORY = "trajectory_msgs" "msg" "JointTrajectory"
        "179b33eba59d676f6d967ac71fe35e7ca2f64b2f3928f4a018cec115e213796e";
    /// Health.
    DIAGNOSTIC_ARRAY = "diagnostic_msgs" "msg" "DiagnosticArray"
        "5a8a36efb05fb25070fa0fb3810290c0e6cd4862b54a8fb975a1ee8dc55a333e";
    /// Do it.
    TRIGGER = "std_srvs" "srv" "Trigger"
        "eeff2cd6fa5ad9d27cdf4dec64818317839b62f212a91e6b5304b634b2062c5f";
    /// On or off.
    SET_BOOL = "std_srvs" "srv" "SetBool"
        "abe9e4bb6b41b40e6789712c00ec8871923e089af3f667a79992a428cff2da0a";
    /// Of parameters: names.
    LIST_PARAMETERS = "rcl_interfaces" "srv" "ListParameters"
        "3e6062bfbb27bfb8730d4cef2558221f51a11646d78e7bb30a1e83afac3aad9d";
    /// Of parameters: values.
    GET_PARAMETERS = "rcl_interfaces" "srv" "GetParameters"
        "bf9803d5c74cf989a5de3e0c2e99444599a627c7ff75f97b8c05b01003675cbc";
    /// Of parameters: types.
    GET_PARAMETER_TYPES = "rcl_interfaces" "srv" "GetParameterTypes"
        "da199c878688b3e530bdfe3ca8f74cb9fa0c303101e980a9e8f260e25e1c80ca";
    /// Of parameters: descriptions.
    DESCRIBE_PARAMETERS = "rcl_interfaces" "srv" "DescribeParameters"
        "845b484d71eb0673dae682f2e3ba3c4851a65a3dcfb97bddd82c5b57e91e4cff";
    /// Of parameters: each by itself.
    SET_PARAMETERS = "rcl_interfaces" "srv" "SetParameters"
        "56eed9a67e169f9cb6c1f987bc88f868c14a8fc9f743a263bc734c154015d7e0";
    /// Of parameters: all or none.
    SET_PARAMETERS_ATOMICALLY = "rcl_interfaces" "srv" "SetParametersAtomically"
        "0e192ef259c07fc3c07a13191d27002222e65e00ccec653ca05e856f79285fcd";
}

impl Interface {
    /// As ROS writes it: `std_msgs/msg/String`.
    pub fn ros_name(&self) -> String {
        format!("{}/{}/{}", self.package, self.family, self.name)
    }

    /// As DDS writes it: `std_msgs::msg::dds_::String_`.
    pub fn dds_name(&self) -> String {
        format!("{}::{}::dds_::{}_", self.package, self.family, self.name)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use hiroz_codegen::resolver::Resolver;
    use hiroz_codegen::{bundled_assets_dir_for, discovery};

    use super::*;

    /// The definitions that hiroz-codegen brings along; others are resolved with them.
    #[test]
    fn hashes_are_those_that_hiroz_computes_from_the_definitions_of_jazzy_and_lyrical() {
        for release in ["jazzy", "lyrical"] {
            let folder = bundled_assets_dir_for(release);
            let packages = ALL.iter().map(|interface| interface.package);
            let others = ["builtin_interfaces", "service_msgs"];
            let packages: Vec<_> = packages.chain(others).map(|package| folder.join(package)).collect();
            let mut packages: Vec<_> = packages.iter().map(AsRef::as_ref).collect();
            packages.sort();
            packages.dedup();
            let (messages, services, _) = discovery::discover_all(&packages).unwrap();
            let mut resolver = Resolver::new(false);
            let messages = resolver.resolve_messages(messages).unwrap().into_iter();
            let messages =
                messages.map(|m| (format!("{}/msg/{}", m.parsed.package, m.parsed.name), m.type_hash));
            let services = resolver.resolve_services(services).unwrap().into_iter();
            let services =
                services.map(|s| (format!("{}/srv/{}", s.parsed.package, s.parsed.name), s.type_hash));
            let hashes: HashMap<String, _> = messages.chain(services).collect();
            for interface in ALL {
                let hash = hashes.get(&interface.ros_name()).map(|hash| hash.to_rihs_string());
                assert_eq!(hash, Some(format!("RIHS01_{}", interface.hash)), "{release} {interface:?}");
            }
        }
    }
}
