// What a person has set for their requests, as fields of a request.
export { faults, preset, requestFields, settings, wantsTokens } from "../settings/state.js";
