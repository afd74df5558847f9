/**
 * What a release is: rules over labels, each naming a version, and a default. Shared by the server and the SDK.
 */

export type ContentFormat = "json" | "yaml" | "toml" | "properties" | "text" | "flag";
export const contentFormats: readonly ContentFormat[] = [
  "json",
  "yaml",
  "toml",
  "properties",
  "text",
  "flag",
];

/** What a config is when nobody said. */
export const defaultFormat: ContentFormat = "json";

/** What a client says of itself. */
export type Labels = Readonly<Record<string, string>>;

/** A label must equal the value, be one of the values, or satisfy the operators (all of those given). */
export type LabelMatch =
  | string
  | readonly string[]
  | {
      readonly not?: string | readonly string[];
      readonly prefix?: string;
      readonly suffix?: string;
      readonly exists?: boolean;
      readonly semver?: string;
      readonly gt?: number;
      readonly gte?: number;
      readonly lt?: number;
      readonly lte?: number;
    };

export interface ReleaseRule {
  readonly id: string;
  readonly match: Readonly<Record<string, LabelMatch>>;
  readonly rollout?: {
    /** 0 … 100, in steps of 0.001. */
    readonly percentage: number;
    /** The label whose value decides the bucket. */
    readonly by: string;
    /** Fixed at creation: what keeps a larger percentage from moving a client that was in. */
    readonly salt?: string;
    readonly algorithm?: "murmur3-100k";
  };
  /** RFC 3339 times between which the rule is considered. */
  readonly from?: string;
  readonly until?: string;
  readonly version: number;
}

/** What is released of a config: all that an evaluation needs. */
export interface Release {
  readonly rules: readonly ReleaseRule[];
  readonly default: number | null;
}

/** A config as whoever evaluates rules himself holds it; the content of a value that was asked for with `rules=true`. */
export interface ReleasedRules {
  readonly release: number;
  readonly rules: readonly ReleaseRule[];
  readonly default: number | null;
  /** As of when times of rules are judged, milliseconds since 1970. */
  readonly judgedAt: number;
  /** By number: those that a rule or the default names. */
  readonly versions: Readonly<Record<string, ReleasedVersion>>;
}

export interface ReleasedVersion {
  readonly hash: string;
  readonly format: ContentFormat;
  /** Absent when all of them together are over 8 MiB. */
  readonly content?: string;
}
