// The token of the printed address: taken out of the address bar, so that it is in no link that is copied.

function taken(): string | null {
  if (typeof location === "undefined") return null;
  const query = new URLSearchParams(location.search);
  const found = query.get("token");
  if (found === null) return null;
  query.delete("token");
  history.replaceState(null, "", `${location.pathname}?${query}${location.hash}`);
  return found;
}

const token = taken();

/** What every request brings along: a page in a frame of another site's has no cookie. */
export const credentials: RequestInit = token === null ? {} : { headers: { "X-Token": token } };
